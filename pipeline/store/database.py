"""The connection to Postgres: one pool, and every foreign error translated to ours.

Statements are written by hand and sent through psycopg: each is one round trip for many rows, and
there are few of them. SQLAlchemy describes the tables and Alembic runs the migrations.
"""

import logging
import select
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import psycopg
from psycopg import AsyncConnection
from psycopg.abc import RV, PQGen
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from pipeline.store.connecting import ANSWER_SECONDS, check_encoding, first_line, has_iso_dates, parse_url
from schemas.errors import StoreUnavailable, UnstorableValue

# The pool warns of each connection attempt that fails; the caller that waits gets an exception with the reason instead.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
_UNREACHABLE_SECONDS = 1.0
_BUSY_SECONDS = 10.0
_CONNECT_TIMEOUT_SECONDS = 0.2


@contextmanager
def translate_errors() -> Iterator[None]:
    """Translate connection errors of psycopg to StoreUnavailable; mistakes in our SQL stay what they are."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise StoreUnavailable("the database has no tables of this program yet; run: yyc3 db upgrade") from error
    except psycopg.errors.UndefinedColumn as error:
        raise StoreUnavailable("the database is of an older version; run: yyc3 db upgrade") from error
    except UnicodeEncodeError:
        raise UnstorableValue(
            "a value has half a character, or bytes that are no text: Postgres has none like it"
        ) from None
    except psycopg.DataError as error:
        # Postgres quotes the value that it refuses, and the value is a caller's: neither text nor cause is kept.
        raise UnstorableValue(f"Postgres refuses a value ({error.sqlstate})") from None
    except (psycopg.errors.InsufficientPrivilege, psycopg.InternalError) as error:
        raise StoreUnavailable(f"Postgres refuses: {first_line(error)}") from error
    except psycopg.errors.LockNotAvailable as error:
        raise StoreUnavailable("Postgres is busy: another process holds a row for longer than is waited for") from error
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
        unreachable = getattr(error, "sqlstate", None) is None
        problem = "cannot be reached" if unreachable else "fails"
        raise StoreUnavailable(f"Postgres {problem}: {first_line(error)}") from error


class Connection(AsyncConnection[DictRow]):
    """A connection with a limit for every answer: a suspended server takes statements and is silent."""

    async def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:  # noqa: ASYNC109
        """Wait for an answer; a connection that is silent for too long is closed."""
        try:
            return await super().wait(gen, interval, ANSWER_SECONDS if timeout is None else timeout)
        except psycopg.OperationalError as error:
            if (
                error.sqlstate is None
                and timeout is None
                and self.pgconn.transaction_status == TransactionStatus.ACTIVE
            ):
                self.pgconn.finish()
                raise psycopg.OperationalError(f"it did not answer within {ANSWER_SECONDS:.0f} s") from error
            raise


async def _is_alive(connection: Connection) -> bool:
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

    `database_url` may have SQLAlchemy's `+psycopg`, and `?pooler=transaction`, see `connecting`.
    """

    def __init__(self, database_url: str, *, max_connections: int = 8) -> None:
        address = parse_url(database_url)
        self._in_use = 0
        self._problem: str | None = None
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            address.url,
            connection_class=self._connection_class(),
            kwargs={"autocommit": True, "row_factory": dict_row, **address.arguments()},
            min_size=1,
            max_size=max_connections,
            timeout=_CONNECT_TIMEOUT_SECONDS,
            # Each caller connects again: with the pool's own back-off a database that is back is detected late.
            reconnect_timeout=0,
            open=False,
        )

    def _connection_class(self) -> type[Connection]:
        """Return a class of connections that remembers why the last one could not be made: the pool does not say."""
        database = self

        class Reporting(Connection):
            @classmethod
            async def connect(cls, *arguments: Any, **options: Any) -> Self:
                try:
                    made = await super().connect(*arguments, **options)
                    try:
                        check_encoding(made)
                        if not has_iso_dates(made):  # PGDATESTYLE outranks the options of a connection
                            await made.execute("SET datestyle TO ISO")
                    except psycopg.Error:
                        await made.close()
                        raise
                except psycopg.Error as error:
                    database._problem = first_line(error)
                    raise
                database._problem = None
                return made

        return Reporting

    async def open(self) -> Self:
        """Start the pool; connections are opened when they are needed."""
        await self._pool.open(wait=False)
        return self

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
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

    async def _acquire(self) -> Connection:
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
            reason = self._problem or f"no connection in {seconds:.0f} s"
            raise StoreUnavailable(f"Postgres cannot be reached: {reason}") from None

    async def _discard(self, connection: Connection) -> None:
        """Close a connection; the pool opens another one in its place."""
        try:
            await connection.close()
        finally:
            await self._pool.putconn(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction: all or nothing."""
        async with self.connection() as connection, connection.transaction():
            yield connection
