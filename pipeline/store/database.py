"""The way to Postgres: one pool, and every foreign error mapped to ours.

Statements are written by hand and sent through psycopg: each is one round trip for many rows, and there are few of them.
SQLAlchemy owns the tables and Alembic their migrations.
"""

import logging
import select
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Self

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from schemas.errors import StoreUnavailable, ValueRefused

# It warns of each attempt that fails; whoever waits for the connection is told instead.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
_AWAY_SECONDS = 1.0
_BUSY_SECONDS = 10.0
_KNOCK_SECONDS = 0.2
_TCP = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "connect_timeout": 5,
}


def plain_url(url: str) -> str:
    """A libpq URL: SQLAlchemy's driver suffix is not one of its schemes."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme.split('+')[0]}{separator}{rest}"


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn psycopg's connection troubles into StoreUnavailable; mistakes in our SQL stay what they are."""
    try:
        yield
    except psycopg.errors.UndefinedTable as error:
        raise StoreUnavailable("the database has no tables of ours yet; run: yyc3 db upgrade") from error
    except psycopg.errors.UndefinedColumn as error:
        raise StoreUnavailable("the database is of an older version; run: yyc3 db upgrade") from error
    except psycopg.DataError as error:
        # Postgres quotes the value it refuses, and the value is a caller's: neither text nor cause goes on.
        raise ValueRefused(f"Postgres refuses a value ({error.sqlstate})") from None
    except (psycopg.errors.InsufficientPrivilege, psycopg.InternalError) as error:
        raise StoreUnavailable(f"Postgres refuses: {_first_line(error)}") from error
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
        away = getattr(error, "sqlstate", None) is None
        raise StoreUnavailable(f"Postgres {'cannot be reached' if away else 'fails'}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


async def _is_alive(connection: AsyncConnection[DictRow]) -> bool:
    """Nothing comes by itself on an idle connection but its end: only then a round trip is worth it."""
    try:
        looking = select.poll()
        looking.register(connection.fileno(), select.POLLIN)
        if not looking.poll(0):
            return True
        await connection.execute("")
    except psycopg.Error:
        return False
    return True


class Database:
    """A pool of connections in autocommit mode; rows come as dicts.

    A caller is told within about a second that there is no database. One who only waits for the connections of others waits
    longer. Connections that the server closed meanwhile, by a restart for instance, are noticed before they are used.

    `database_url` may carry SQLAlchemy's `+psycopg`.
    """

    def __init__(self, database_url: str, *, max_connections: int = 8) -> None:
        self._taken = 0
        self._pool: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
            plain_url(database_url),
            connection_class=AsyncConnection[DictRow],
            kwargs={"autocommit": True, "row_factory": dict_row, "application_name": "yyc3", **_TCP},
            min_size=1,
            max_size=max_connections,
            timeout=_KNOCK_SECONDS,
            # Each caller knocks anew: with the pool's own back-off it would be noticed late that the database is back.
            reconnect_timeout=0,
            open=False,
        )

    async def open(self) -> Self:
        """Start the pool; connections are made as they are needed."""
        await self._pool.open(wait=False)
        return self

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[DictRow]]:
        """A connection of the pool.

        Raises:
            StoreUnavailable: no database, or it went away; nothing is known to be written.
        """
        with mapped_errors():
            connection = await self._take()
            try:
                async with connection:
                    yield connection
            finally:
                self._taken -= 1
                await self._pool.putconn(connection)

    async def _take(self) -> AsyncConnection[DictRow]:
        began = time.monotonic()
        while True:
            try:
                connection = await self._pool.getconn()
            except PoolTimeout:
                waited = time.monotonic() - began
                if self._taken and waited >= _BUSY_SECONDS:
                    raise StoreUnavailable(f"Postgres is busy: no connection became free in {waited:.0f} s") from None
                if not self._taken and waited >= _AWAY_SECONDS:
                    raise StoreUnavailable(f"Postgres cannot be reached: no connection in {waited:.0f} s") from None
            else:
                alive = False
                try:
                    alive = await _is_alive(connection)
                finally:  # a caller may give up meanwhile: the pool must not lose the connection
                    if not alive:
                        await self._give_back(connection)
                if alive:
                    self._taken += 1
                    return connection

    async def _give_back(self, connection: AsyncConnection[DictRow]) -> None:
        """Close it; the pool makes another in its place."""
        try:
            await connection.close()
        finally:
            await self._pool.putconn(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection[DictRow]]:
        """A connection in a transaction: all or nothing."""
        async with self.connection() as connection, connection.transaction():
            yield connection


__all__ = ["Database", "mapped_errors", "plain_url"]
