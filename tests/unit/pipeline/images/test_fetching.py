"""Images behind URLs: allowed hosts only, and no private address."""

import resource
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from pipeline.images import ImageSanitizer
from pipeline.images.fetching import Fetcher, is_public
from schemas.errors import InvalidJob
from tests.unit.pipeline.images.samples import encoded, vision


def here(address: str) -> bool:
    return address in {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("::7f00:1", False),
        ("fec0::1", False),
    ],
)
def test_an_address_is_public_or_not(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("https://example.com/a.png", "is at a host that is not allowed"),
        ("http://127.0.0.1:8000/a.png", "private address"),
        ("http://[::1]/a.png", "private address"),
        ("http://169.254.169.254/latest/meta-data", "private address"),
        ("http://localhost/a.png", "private address"),
        ("https://allowed.test@127.0.0.1/a.png", "is not a plain https URL"),
        ("https://[bad/a.png", "is not a URL"),
        ("ftp://allowed.test/a.png", "neither a data URL"),
    ],
)
async def test_urls_of_other_hosts_and_private_addresses_are_refused(image: str, reason: str) -> None:
    sanitizer = ImageSanitizer(lambda: Fetcher({"localhost", "127.0.0.1", "allowed.test"}, schemes=("https", "http")))
    with pytest.raises(InvalidJob, match=reason):
        await sanitizer.sanitize(vision(image))
    sanitizer.close()


@pytest.fixture
async def site() -> AsyncIterator[Callable[[str], str]]:
    """Run a site on this machine, whose address a test allows."""

    async def image(_: web.Request) -> web.Response:
        return web.Response(body=encoded())

    async def inward(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://127.0.0.2:9/secret.png")

    async def outward(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://example.com/a.png")

    async def around(_: web.Request) -> web.Response:
        raise web.HTTPFound("/around")

    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPFound("/a.png")

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(200):
            await response.write(b"\0" * 1_000_000)
        return response

    async def bomb(_: web.Request) -> web.Response:
        return web.Response(body=zlib.compress(b"\0" * 10_000_000), headers={"content-encoding": "deflate"})

    app = web.Application()
    for name, handler in (
        ("/a.png", image),
        ("/inward", inward),
        ("/outward", outward),
        ("/around", around),
        ("/elsewhere", elsewhere),
        ("/endless", endless),
        ("/bomb", bomb),
    ):
        app.router.add_get(name, handler)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    yield lambda path: f"http://localhost:{server.port}{path}"
    await server.close()


@pytest.mark.parametrize("path", ["/a.png", "/elsewhere"])
async def test_an_allowed_host_is_fetched_from(site: Callable[[str], str], path: str) -> None:
    sanitizer = ImageSanitizer(lambda: Fetcher({"localhost"}, here, schemes=("http",)))
    (image,) = (await sanitizer.sanitize(vision(site(path)))).images
    assert image.startswith("data:image/png;base64,")
    sanitizer.close()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/inward", "private address"),
        ("/outward", "host that is not allowed"),
        ("/around", "redirected more than 3 times"),
        ("/endless", "larger than 10 MiB"),
        ("/bomb", "not an image of a known type"),
        ("/missing", "HTTP 404"),
    ],
)
async def test_an_allowed_host_may_not_redirect_inward_or_send_too_much(
    site: Callable[[str], str], path: str, reason: str
) -> None:
    allowed = {"localhost", "127.0.0.2"}
    sanitizer = ImageSanitizer(lambda: Fetcher(allowed, here, schemes=("http",)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidJob, match=reason):
        await sanitizer.sanitize(vision(site(path)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000, "kilobytes"
    sanitizer.close()


async def test_an_allowed_name_that_leads_to_a_private_address_is_refused(site: Callable[[str], str]) -> None:
    sanitizer = ImageSanitizer(lambda: Fetcher({"localhost"}, schemes=("http",)))
    with pytest.raises(InvalidJob, match="private address"):
        await sanitizer.sanitize(vision(site("/a.png")))
    sanitizer.close()
