"""The connection pool on a real Postgres: unavailable, busy, restarted."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from pipeline.store import Database, queries
from schemas.errors import StoreUnavailable
from tests.support.sandbox import Sandbox, wait_for


@pytest.fixture
async def small_pool(sandbox: Sandbox) -> AsyncIterator[Database]:
    """A pool of two connections."""
    database = await Database(sandbox.database_url, max_connections=2).open()
    yield database
    await database.close()


async def hold(database: Database, seconds: float) -> None:
    """Hold a connection for a while."""
    async with database.connection() as connection:
        await connection.execute("SELECT pg_sleep(%s)", (seconds,))


async def test_an_absent_database_is_reported_in_one_sentence(sandbox: Sandbox) -> None:
    absent = await Database(sandbox.database_url.rsplit("/", 1)[0] + "/absent").open()
    with pytest.raises(StoreUnavailable, match="Postgres cannot be reached"):
        await queries.queue_states(absent)
    await absent.close()


async def test_callers_that_outnumber_the_connections_wait_for_one(small_pool: Database) -> None:
    await asyncio.gather(*[hold(small_pool, 0.6) for _ in range(6)])


async def test_connections_that_the_server_closed_are_replaced(database: Database, sandbox: Sandbox) -> None:
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    await asyncio.gather(*[hold(database, 0.2) for _ in range(8)])
    assert sandbox.query(f"SELECT count(pg_terminate_backend(pid)) {others}")[0][0] > 2
    wait_for(lambda: sandbox.query(f"SELECT count(*) {others}") == [(0,)], "the connections to be closed")
    await asyncio.gather(*[hold(database, 0.2) for _ in range(8)])


async def test_a_caller_cancelled_while_its_connection_is_checked_leaks_none(
    small_pool: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: object) -> bool:
        await asyncio.sleep(60)
        return True

    await asyncio.gather(*[hold(small_pool, 0.1) for _ in range(2)])
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.store.database._is_alive", hang)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await hold(small_pool, 0)
    await asyncio.gather(*[hold(small_pool, 0.1) for _ in range(4)])
