"""Fetch images behind URLs: only from allowed hosts, and never from a private address.

The address is checked when the connection is made, so a name that resolves differently the second time
gains nothing, and a redirect is checked like any URL.
"""

import asyncio
import socket
from collections.abc import Callable, Collection
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from schemas.limits import MAX_IMAGE_BYTES

_MAX_REDIRECTS = 3
_SECONDS = 10.0
_NAT64 = IPv6Network("64:ff9b::/96")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet."""
    found = ip_address(address)
    if isinstance(found, IPv6Address):
        inner = (
            found.ipv4_mapped or found.sixtofour or (IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else None)
        )
        if inner is not None:
            return inner.is_global and not inner.is_multicast
        if found.is_site_local or int(found) >> 32 == 0:
            return False
    return found.is_global and not found.is_multicast


class _CheckedResolver(AbstractResolver):
    """Resolves names, and returns only addresses that may be connected to."""

    def __init__(self, may_connect: Callable[[str], bool]) -> None:
        self._may_connect = may_connect
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not all(self._may_connect(entry["host"]) for entry in found):
            raise _PrivateAddress
        return found

    async def close(self) -> None:
        await self._inner.close()


class _PrivateAddress(Exception):  # noqa: N818 - it describes an address
    pass


class Fetcher:
    """Fetches images.

    Args:
        hosts: allowed names, as in URLs; none by default.
        may_connect: whether an address may be connected to.
        schemes: allowed schemes; without TLS others could change the image on its way.
    """

    def __init__(
        self,
        hosts: Collection[str] = (),
        may_connect: Callable[[str], bool] = is_public,
        schemes: Collection[str] = ("https",),
    ) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._may_connect = may_connect
        self._schemes = frozenset(schemes)

    async def fetch(self, url: str) -> bytes:
        """Return the bytes behind a URL, at most 10 MiB.

        Raises:
            ValueError: a clause with the reason, without the URL.
        """
        try:
            async with asyncio.timeout(_SECONDS):
                return await self._fetch(url)
        except TimeoutError:
            raise ValueError(f"could not be fetched within {_SECONDS:.0f} s") from None

    async def _fetch(self, url: str) -> bytes:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=_CheckedResolver(self._may_connect), use_dns_cache=False),
            auto_decompress=False,  # images are compressed already; more compression is a bomb
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            for _ in range(_MAX_REDIRECTS + 1):
                self._check(url)
                found = await self._request(session, url)
                if isinstance(found, bytes):
                    return found
                url = found
            raise ValueError(f"was redirected more than {_MAX_REDIRECTS} times")

    async def _request(self, session: aiohttp.ClientSession, url: str) -> bytes | str:
        """Return the body, or the URL of a redirect."""
        try:
            async with session.get(url, allow_redirects=False) as response:
                if response.status in _REDIRECTS and "location" in response.headers:
                    return urljoin(url, response.headers["location"])
                if response.status != 200:
                    raise ValueError(f"could not be fetched: its host answered HTTP {response.status}")
                return await _limited(response)
        except _PrivateAddress:
            raise ValueError("leads to a private address; send the image itself as a data URL") from None
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise ValueError(f"could not be fetched ({type(error).__name__})") from None

    def _check(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").lower()
            literal = _is_literal(host)
        except ValueError:
            raise ValueError("is not a URL") from None
        if parts.scheme not in self._schemes or parts.username is not None:
            raise ValueError("is not a plain https URL")
        # aiohttp does not resolve an address, so it is checked here.
        if literal and not self._may_connect(host):
            raise ValueError("leads to a private address; send the image itself as a data URL")
        if host not in self._hosts:
            raise ValueError(
                "is at a host that is not allowed; send a data URL, or name the host in YYC3_IMAGE_HOSTS of the submitter"
            )


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def _limited(response: aiohttp.ClientResponse) -> bytes:
    """Return the body unless it is too large; no more than the limit is ever in memory."""
    body = bytearray()
    async for piece in response.content.iter_chunked(65_536):
        body += piece
        if len(body) > MAX_IMAGE_BYTES:
            raise ValueError(f"is larger than {MAX_IMAGE_BYTES >> 20} MiB; send a smaller one")
    return bytes(body)
