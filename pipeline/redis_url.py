"""Read the URL of a Redis or Valkey: over TCP, over TLS, or over a unix socket.

    redis://:PASSWORD@HOST:PORT/0    rediss://...    redis+socket://:PASSWORD@/PATH?virtual_host=0

A socket is written as Celery writes it; redis-py's own form, `unix://:PASSWORD@/PATH?db=0`, is the same.
"""

from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlsplit

SCHEMES = ("redis://", "rediss://", "redis+socket://", "unix://")
_SOCKETS = ("redis+socket", "unix")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A Redis URL, read.

    Attributes:
        url: for redis-py.
        socket: the path of its unix socket; None for TCP and TLS.
        broker_url: for Celery; where there is a socket, it has only user, password and database of it.
    """

    url: str
    socket: str | None
    broker_url: str


def parse_redis_url(url: str) -> RedisAddress:
    """Read a Redis URL.

    Raises:
        ValueError: one clause, without the URL, which may have a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SOCKETS:
        return RedisAddress(url, None, url)
    if parts.hostname or not parts.path.strip("/"):
        raise ValueError("needs the whole path of the socket, as in redis+socket:///run/redis/redis.sock")
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    database = query.get("virtual_host", query.get("db", "0")).strip("/") or "0"
    if not database.isdecimal():
        raise ValueError("its virtual_host is the number of a database, 0 if none is named")
    path, login = unquote(parts.path), parts.netloc.rpartition("@")[0]
    at = f"{login}@" if login else ""
    return RedisAddress(f"unix://{at}{quote(path)}?db={database}", path, f"redis://{at}localhost/{database}")


def socket_url(password: str, path: str) -> str:
    """Return the URL of a socket."""
    return f"redis+socket://:{password}@{quote(path)}"
