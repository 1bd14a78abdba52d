"""The connection to Postgres: one pool, and every foreign error translated to ours.

Statements are written by hand and sent through psycopg: each is one round trip for many rows, and
there are few of them. SQLAlchemy describes the tables and Alembic runs the migrations.
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

from schemas.errors import StoreUnavailable, UnstorableValue

# The pool warns of each connection attempt that fails; the caller that waits gets an exception instead.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
_UNREACHABLE_SECONDS = 1.0
_BUSY_SECONDS = 10.0
_CONNECT_TIMEOUT_SECONDS = 0.2
_TCP = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "connect_timeout": 5,
}


def plain_url(url: str) -> str:
    """Return a libpq URL: SQLAlchemy's driver suffix is not one of its schemes."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme.split('+')[0]}{separator}{rest}"


@contextmanager
def translate_errors() -> Iterator[None]:
    """Translate connection errors of psycopg to StoreUnavailable; mistakes in our SQL stay what they are."""
    try:
        yield
    except psycopg.errors.UndefinedTable as error:
        raise StoreUnavailable("the database has no tables of this program yet; run: yyc3 db upgrade") from error
    except psycopg.errors.UndefinedColumn as error:
        raise StoreUnavailable("the database is of an older version; run: yyc3 db upgrade") from error
    except psycopg.DataError as error:
        # Postgres quotes the value that it refuses, and the value is a caller's: neither text nor cause is kept.
        raise UnstorableValue(f"Postgres refuses a value ({error.sqlstate})") from None
    except (psycopg.errors.InsufficientPrivilege, psycopg.InternalError) as error:
        raise StoreUnavailable(f"Postgres refuses: {_first_line(error)}") from error
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
        unreachable = getattr(error, "sqlstate", None) is None
        problem = "cannot be reached" if unreachable else "fails"
        raise StoreUnavailable(f"Postgres {problem}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


async def _is_alive(connection: AsyncConnection[DictRow]) -> bool:
    """Whether an idle connection works. Unexpected data usually means that the server closed it: only then it is tested."""
    try:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        if not poll.poll(0):
            return True
        await connection.execute("")
    except psycopg.Error:
        return False
    return True


class Database:
    """A pool of connections in autocommit mode; rows are dicts.

    Without a database a caller gets StoreUnavailable within about a second; a caller that waits for a
    connection in use by others waits up to ten. Connections that the server closed meanwhile, by a
    restart for instance, are detected before they are used.

    `database_url` may have SQLAlchemy's `+psycopg`.
    """

    def __init__(self, database_url: str, *, max_connections: int = 8) -> None:
        self._in_use = 0
        self._pool: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
            plain_url(database_url),
            connection_class=AsyncConnection[DictRow],
            kwargs={"autocommit": True, "row_factory": dict_row, "application_name": "yyc3", **_TCP},
            min_size=1,
            max_size=max_connections,
            timeout=_CONNECT_TIMEOUT_SECONDS,
            # Each caller connects again: with the pool's own back-off a database that is back is detected late.
            reconnect_timeout=0,
            open=False,
        )

    async def open(self) -> Self:
        """Start the pool; connections are opened when they are needed."""
        await self._pool.open(wait=False)
        return self

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[DictRow]]:
        """A connection of the pool.

        Raises:
            StoreUnavailable: no database, or the connection broke; nothing is known to be written.
        """
        with translate_errors():
            connection = await self._acquire()
            try:
                async with connection:
                    yield connection
            finally:
                self._in_use -= 1
                await self._pool.putconn(connection)

    async def _acquire(self) -> AsyncConnection[DictRow]:
        started = time.monotonic()
        while True:
            try:
                connection = await self._pool.getconn()
            except PoolTimeout:
                self._check_waited(time.monotonic() - started)
                continue
            alive = False
            try:
                alive = await _is_alive(connection)
            finally:  # the caller may be cancelled meanwhile: the pool must not lose the connection
                if not alive:
                    await self._discard(connection)
            if alive:
                self._in_use += 1
                return connection

    def _check_waited(self, seconds: float) -> None:
        if self._in_use and seconds >= _BUSY_SECONDS:
            raise StoreUnavailable(f"Postgres is busy: no connection became free in {seconds:.0f} s") from None
        if not self._in_use and seconds >= _UNREACHABLE_SECONDS:
            raise StoreUnavailable(f"Postgres cannot be reached: no connection in {seconds:.0f} s") from None

    async def _discard(self, connection: AsyncConnection[DictRow]) -> None:
        """Close a connection; the pool opens another one in its place."""
        try:
            await connection.close()
        finally:
            await self._pool.putconn(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection[DictRow]]:
        """A connection in a transaction: all or nothing."""
        async with self.connection() as connection, connection.transaction():
            yield connection
