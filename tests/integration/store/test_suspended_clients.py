"""A process that stops in the middle of anything, with its connections open: nothing of the others waits for it for long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pipeline.store import Database, cancellation, dead_letters, leases, queries, recovery, settlement
from pipeline.store.connecting import ROLE_SETTINGS, parse_url
from pipeline.store.dead_letters import DeadLetterFilter, Decision
from pipeline.store.ids import PARTITION_JOBS, JobIds
from pipeline.store.settlement import Settlement
from schemas.errors import ErrorCode, UnstorableValue
from schemas.results import JobState
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import (
    EXPIRED,
    LEASE,
    claim_queued,
    failed,
    requeue_expired,
    store_batch,
    store_jobs,
    succeeded,
)

SOON = 3.0


@asynccontextmanager
async def holding(sandbox: Sandbox, statement: str, *arguments: Any) -> AsyncIterator[None]:
    """A client that executed a statement in a transaction, and then stopped."""
    address = parse_url(sandbox.database_url)
    connection = await psycopg.AsyncConnection.connect(address.url, **address.arguments())
    await connection.execute(statement, arguments)
    try:
        yield
    finally:
        await connection.rollback()
        await connection.close()


def chunk_of(job_id: int) -> tuple[str, int]:
    return "SELECT * FROM chunks WHERE first_job_id = %s FOR UPDATE", job_id


async def test_one_locked_chunk_delays_no_other_settlement_and_no_renewal(database: Database, sandbox: Sandbox) -> None:
    await store_batch(database, 3, chunk_rows=1)
    one, two, three = [await claim_queued(database) for _ in range(3)]
    async with asyncio.timeout(SOON), holding(sandbox, *chunk_of(one.first_job_id)):
        done = await settlement.settle(database, [succeeded(one), succeeded(two)])
        assert done.written == {(two.first_job_id, two.fence)}
        assert done.locked == {(one.first_job_id, one.fence)}
        renewed = await leases.renew(database, [one.run_id, three.run_id], LEASE)
        assert set(renewed) == {one.run_id, three.run_id}, "what is locked was not lost"
    assert (await settlement.settle(database, [succeeded(one)])).written == {(one.first_job_id, one.fence)}


async def test_what_is_locked_is_neither_taken_from_its_worker_nor_expired(
    database: Database, sandbox: Sandbox
) -> None:
    await store_batch(database, 2, chunk_rows=1)
    one = await claim_queued(database, lease=EXPIRED)
    await claim_queued(database, lease=EXPIRED)
    async with asyncio.timeout(SOON), holding(sandbox, *chunk_of(one.first_job_id)):
        await requeue_expired(database)
    states = sandbox.query("SELECT state FROM chunks ORDER BY first_job_id")
    assert states == [("running",), ("queued",)]


async def test_dead_letters_of_a_locked_chunk_are_decided_about_another_time(
    database: Database, sandbox: Sandbox
) -> None:
    await store_batch(database, 2, chunk_rows=1)
    runs = [await claim_queued(database) for _ in range(2)]
    for run in runs:
        await settlement.settle(database, [failed(run)])
    everything = DeadLetterFilter()
    async with asyncio.timeout(SOON), holding(sandbox, *chunk_of(runs[0].first_job_id)):
        page = await dead_letters.decide(database, everything, Decision.REPLAYED, after=None, limit=10)
        assert (page.decided, page.busy) == (1, 1)
    page = await dead_letters.decide(database, everything, Decision.REPLAYED, after=None, limit=10)
    assert (page.decided, page.busy) == (1, 0)


async def test_no_statement_of_ours_leaves_a_transaction_open(database: Database, sandbox: Sandbox) -> None:
    """A lock that is held between two round trips waits for the process that made the first one."""
    stored = await store_jobs(database, [])
    assert stored.chunks == []
    seen: list[str] = []
    original = psycopg.AsyncConnection.transaction

    def spied(self: psycopg.AsyncConnection[Any], *args: Any, **more: Any) -> Any:
        seen.append("transaction")
        return original(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.AsyncConnection, "transaction", spied)
        await JobIds(database).allocate([1])
        sandbox.query("SELECT setval('job_id_blocks', %s)", PARTITION_JOBS // 1_024 * 3)
        batch = await store_batch(database, 4, chunk_rows=2)
        assert seen == ["transaction"], "COPY of a batch needs one; it locks no row that exists"
        seen.clear()
        await cancellation.cancel(database, batch.job_ids[0])
        run = await claim_queued(database, lease=EXPIRED)
        await leases.renew(database, [run.run_id], LEASE)
        await settlement.settle(database, [failed(run)])
        await dead_letters.decide(database, DeadLetterFilter(), Decision.REPLAYED, after=None, limit=10)
        await recovery.expire(database)
        await requeue_expired(database)
        assert seen == []


async def test_a_worker_that_was_silent_and_lives_takes_its_crash_back(database: Database, sandbox: Sandbox) -> None:
    await store_batch(database, 1)
    for _ in range(5):  # more often than a poisonous job may lose workers
        run = await claim_queued(database, lease=EXPIRED)
        await requeue_expired(database)
        assert sandbox.query("SELECT crashes FROM chunks") == [(1,)]
        assert await leases.renew(database, [run.run_id], LEASE) == {}
        await leases.take_crashes_back(database, [(run.first_job_id, run.fence)])
        assert sandbox.query("SELECT crashes FROM chunks") == [(0,)]
    assert len((await claim_queued(database)).jobs) == 1


async def test_a_result_that_cannot_be_stored_is_refused_before_anything_is_written(database: Database) -> None:
    stored = await store_batch(database, 2)
    run = await claim_queued(database)
    bad = succeeded(run).rows[1]
    bad.label = "half \x00"
    with pytest.raises(UnstorableValue):
        await settlement.settle(database, [Settlement(run.first_job_id, run.fence, [succeeded(run).rows[0], bad])])
    found = await queries.outcomes_of(database, list(stored.job_ids))
    assert {outcome.state for outcome in found.values()} == {JobState.RUNNING}


def test_the_role_has_limits_for_every_statement(sandbox: Sandbox) -> None:
    """Also for a connection that knows nothing of ours, as one of a pooler."""
    with psycopg.connect(sandbox.database_url) as connection:
        for name, value in ROLE_SETTINGS.items():
            row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
            assert row is not None
            assert row[0].split(",")[0] in {value, value.replace("s", "000")}, name


async def test_expiry_takes_what_it_is_given_and_leaves_jobs_without_a_deadline(
    database: Database, sandbox: Sandbox
) -> None:
    stored = await store_batch(database, 12, chunk_rows=4)
    sandbox.query("UPDATE jobs SET deadline = now() - interval '1 s' WHERE job_id %% 4 <> 3")
    sandbox.query("UPDATE chunks SET deadline = now() - interval '1 s'")
    assert len(await recovery.expire(database, chunks=1)) == 3
    assert len(await recovery.expire(database, chunks=64)) == 6
    assert await recovery.expire(database, chunks=64) == []
    found = await queries.outcomes_of(database, list(stored.job_ids))
    assert [outcome.state for outcome in found.values()].count(JobState.EXPIRED) == 9
    assert sandbox.query("SELECT state, expired, deadline FROM chunks") == [("queued", 3, None)] * 3
    codes = {outcome.error.code for outcome in found.values() if outcome.error}
    assert codes == {ErrorCode.DEADLINE_PASSED}
    assert timedelta(seconds=1) < LEASE
