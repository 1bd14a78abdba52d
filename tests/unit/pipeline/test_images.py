"""Hostile pictures: each is refused in one sentence, and memory stays flat."""

import base64
import io
import resource
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from PIL import Image

from pipeline.images import Fetcher, ImageSanitizer
from pipeline.images.decoding import LONGEST_SIDE_PIXELS, data_url, decode_data_url, reencode
from pipeline.images.fetching import is_public
from schemas.errors import InvalidJob
from schemas.jobs import MAX_IMAGE_BYTES, VisionJob, parse_job


def here(address: str) -> bool:
    return address in {"127.0.0.1", "::1"}


def written(kind: str = "PNG", size: tuple[int, int] = (60, 40), **options: Any) -> bytes:
    raw = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(raw, kind, **options)
    return raw.getvalue()


def url(kind: str, raw: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def vision(image: str) -> VisionJob:
    job = parse_job({"kind": "vision", "question": "what is it?", "images": [image]})
    assert isinstance(job, VisionJob)
    return job


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int, more: bytes = b"") -> bytes:
    """A PNG of a few bytes that claims to be side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + more
        + chunk(b"IDAT", zlib.compress(b"\0" * 1_000_000))
        + chunk(b"IEND", b"")
    )


def scan_bomb(scans: int) -> bytes:
    """A JPEG whose last scan is repeated, each to be decode_data_url over the whole picture."""
    raw = written("JPEG", (1_000, 1_000), progressive=True)
    return raw[:-2] + raw[raw.rindex(b"\xff\xda") : -2] * scans + raw[-2:]


def with_archive(raw: bytes) -> bytes:
    """The picture with a ZIP behind it, arranged to end as the picture does."""
    packed = io.BytesIO(raw)
    packed.seek(0, io.SEEK_END)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("run.js", "alert(1)")
        archive.comment = raw[-12:]
    return packed.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HOSTILE = {
    "svg": (url("svg+xml", SVG), "not a picture of a known type"),
    "svg that says png": (url("png", SVG), "not a picture of a known type"),
    "bomb": (url("png", png_bomb(60_000)), "more than 32 million pixels"),
    "bomb below Pillow's own limit": (url("png", png_bomb(8_000)), "more than 32 million pixels"),
    "bomb of scans": (url("jpeg", scan_bomb(2_000)), "more than 64 scans"),
    "bomb of text": (
        url("png", png_bomb(10, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 90_000_000)))),
        "a damaged PNG",
    ),
    "bomb at the limit of the format": (url("png", png_bomb(2_000_000)), "more than 32 million pixels"),
    "gif and script": (url("gif", written("GIF") + b"*/=1;alert(1)//"), "does not end as a GIF"),
    "png and archive": (url("png", with_archive(written())), "an archive at once"),
    "jpeg and archive": (url("jpeg", with_archive(written("JPEG"))), "an archive at once"),
    "png and page": (url("png", written() + b"<html><script>alert(1)</script>"), "does not end as a PNG"),
    "jpeg that says png": (url("png", written("JPEG")), "says it is image/png and is JPEG"),
    "webp with a tail": (url("webp", written("WEBP") + b"MZ" * 50), "does not end as a WEBP"),
    "pdf": (url("png", b"%PDF-1.7 ..."), "not a picture of a known type"),
    "tiff": (url("png", written("TIFF")), "not a picture of a known type"),
    "cut in the middle": (url("jpeg", written("JPEG", (900, 900))[:2_000]), "does not end as a JPEG"),
    "noise": (url("png", b"\x89PNG\r\n\x1a\n" + b"x" * 500 + b"IEND\xaeB`\x82"), "a damaged PNG"),
    "no base64": ("data:image/png;base64,@@@@", "not base64"),
    "no data url": ("data:text/html,<script>", "is no base64 data URL"),
    "nothing": ("data:image/png;base64,", "not a picture of a known type"),
    "too large": (url("png", written() + b"\0" * (MAX_IMAGE_BYTES + 1 - len(written()))), "larger than 10 MiB"),
}


@pytest.fixture
def door() -> Any:
    made = ImageSanitizer(Fetcher())
    yield made
    made.close()


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_picture_is_refused_in_one_sentence(door: ImageSanitizer, name: str) -> None:
    image, reason = HOSTILE[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidJob, match=reason) as refused:
        await door.sanitize(vision(image))
    assert refused.value.message.startswith("job refused: images.0: ")
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120_000, "kilobytes"


def test_a_hundred_megabytes_are_refused_before_they_are_looked_at() -> None:
    with pytest.raises(InvalidJob, match=r"images: image 0 is larger than 10 MiB") as refused:
        vision("data:image/png;base64," + "A" * 100_000_000)
    assert len(refused.value.message) < 200


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
async def test_a_picture_is_written_anew_without_what_was_hidden_in_it(door: ImageSanitizer, kind: str) -> None:
    options: dict[str, Any] = {"comment": b"canary"} if kind in {"JPEG", "GIF"} else {}
    if kind in {"JPEG", "WEBP", "PNG"}:
        exif = Image.Exif()
        exif[0x010E] = "canary"
        options["exif"] = exif
    raw = written(kind, **options)
    assert b"canary" in raw
    (image,) = (await door.sanitize(vision(url(kind.lower(), raw)))).images
    stored = decode_data_url(image)
    assert b"canary" not in stored
    with Image.open(io.BytesIO(stored)) as picture:
        assert picture.format == ("JPEG" if kind == "JPEG" else "PNG")
        assert picture.size == (60, 40)


def test_a_large_picture_is_shrunk_turned_as_a_person_sees_it_and_keeps_its_transparency() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    kind, raw = reencode(written("JPEG", (4_000, 2_000), exif=exif))
    with Image.open(io.BytesIO(raw)) as picture:
        assert (kind, picture.size) == ("jpeg", (1_024, LONGEST_SIDE_PIXELS))
    clear = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(clear, "PNG")
    kind, raw = reencode(clear.getvalue())
    with Image.open(io.BytesIO(raw)) as picture:
        assert (kind, picture.mode) == ("png", "RGBA")
    assert decode_data_url(data_url(kind, raw)) == raw


def test_a_photo_that_would_be_a_huge_png_becomes_a_jpeg_that_can_be_sent_again() -> None:
    photo = io.BytesIO()
    Image.effect_noise((2_040, 2_040), 90).convert("RGBA").save(photo, "WEBP", quality=60)
    kind, raw = reencode(photo.getvalue())
    assert kind == "jpeg"
    assert vision(data_url(kind, raw)).images


async def test_many_large_pictures_are_looked_at_one_after_another(door: ImageSanitizer) -> None:
    image = url("png", written("PNG", (5_000, 5_000)))
    await door.sanitize(vision(image))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    job = parse_job({"kind": "vision", "question": "?", "images": [image] * 8})
    assert isinstance(job, VisionJob)
    admitted = await door.sanitize(job)
    assert len(admitted.images) == 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000, "kilobytes"


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
def test_which_addresses_are_public(address: str, public: bool) -> None:
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
    door = ImageSanitizer(Fetcher({"localhost", "127.0.0.1", "allowed.test"}, schemes=("https", "http")))
    with pytest.raises(InvalidJob, match=reason):
        await door.sanitize(vision(image))
    door.close()


@pytest.fixture
async def site() -> AsyncIterator[Callable[[str], str]]:
    """A site on this machine; a test lets its address count as public."""

    async def picture(_: web.Request) -> web.Response:
        return web.Response(body=written())

    async def inward(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://127.0.0.2:9/secret.png")

    async def outward(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://example.com/a.png")

    async def around(_: web.Request) -> web.Response:
        raise web.HTTPFound("/around")

    async def has_alternative(_: web.Request) -> web.Response:
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
        ("/a.png", picture),
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
    door = ImageSanitizer(Fetcher({"localhost"}, here, schemes=("http",)))
    (image,) = (await door.sanitize(vision(site(path)))).images
    assert image.startswith("data:image/png;base64,")
    door.close()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/inward", "private address"),
        ("/outward", "host that is not allowed"),
        ("/around", "redirected more than 3 times"),
        ("/endless", "larger than 10 MiB"),
        ("/bomb", "not a picture of a known type"),
        ("/missing", "HTTP 404"),
    ],
)
async def test_what_an_allowed_host_may_not_do(site: Callable[[str], str], path: str, reason: str) -> None:
    allowed = {"localhost", "127.0.0.2"}
    door = ImageSanitizer(Fetcher(allowed, here, schemes=("http",)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidJob, match=reason):
        await door.sanitize(vision(site(path)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000, "kilobytes"
    door.close()


async def test_an_allowed_name_that_leads_to_a_private_address_is_refused(site: Callable[[str], str]) -> None:
    door = ImageSanitizer(Fetcher({"localhost"}, schemes=("http",)))
    with pytest.raises(InvalidJob, match="private address"):
        await door.sanitize(vision(site("/a.png")))
    door.close()
