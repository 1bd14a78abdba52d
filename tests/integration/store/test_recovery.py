"""Chunks of lost workers: expired leases, halving, poison, expiry, and what a look costs."""

import asyncio
import json
import re

import pytest

from pipeline.store import Database, cancellation, leases, queries, recovery, settlement
from pipeline.store.batches import batch_progress
from pipeline.store.claims import Claim
from pipeline.store.settlement import ChunkState
from schemas.errors import ErrorCode
from schemas.results import JobState
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import (
    EXPIRED,
    LEASE,
    claim_next,
    claim_queued,
    requeue_expired,
    store_batch,
    succeeded,
)


async def claim_with_expired_lease(database: Database) -> Claim:
    """Claim a chunk of ten rows whose lease has expired."""
    await store_batch(database, 10)
    return await claim_queued(database, lease=EXPIRED)


async def test_a_renewal_between_two_looks_saves_a_run(database: Database) -> None:
    claim = await claim_with_expired_lease(database)
    first = await recovery.expired_leases(database, LEASE)
    assert [found.first_job_id for found in first] == [claim.first_job_id]
    assert await leases.renew(database, [claim.run_id], LEASE) == {claim.run_id: 0}
    assert await recovery.requeue_lost(database, first) == (0, [])
    assert (await settlement.settle(database, [succeeded(claim)])).written == {(claim.first_job_id, claim.fence)}


async def test_a_lease_that_ends_later_than_a_lease_can_has_expired(database: Database, sandbox: Sandbox) -> None:
    """The clock of the database was set back by an hour after the last renewal."""
    await claim_with_expired_lease(database)
    sandbox.query("UPDATE chunks SET lease_expires_at = now() + interval '1 hour'")
    assert await requeue_expired(database) == (1, [])


async def test_a_delayed_chunk_is_due_when_the_clock_was_set_back(database: Database, sandbox: Sandbox) -> None:
    await store_batch(database, 1)
    sandbox.query("UPDATE chunks SET due_at = now() + interval '1 minute'")
    assert await claim_next(database) is None
    sandbox.query("UPDATE chunks SET due_at = now() + interval '1 hour'")
    assert [runnable.chunks for runnable in await recovery.runnable_chunks(database)] == [1]
    assert await claim_next(database) is not None


async def test_processes_at_once_requeue_a_lost_chunk_once(database: Database, sandbox: Sandbox) -> None:
    await claim_with_expired_lease(database)
    unrenewed = await recovery.expired_leases(database, LEASE)
    done = await asyncio.gather(*[recovery.requeue_lost(database, unrenewed) for _ in range(8)])
    assert sum(requeued for requeued, _ in done) == 1
    assert sandbox.query("SELECT count(*), sum(rows), min(fence), max(fence) FROM chunks") == [(2, 10, 2, 2)]


async def test_a_chunk_that_lost_its_worker_is_halved_and_counts_stay_right(
    database: Database, sandbox: Sandbox
) -> None:
    stored = await store_batch(database, 10)
    claim = await claim_queued(database, lease=EXPIRED)
    await settlement.settle(database, [succeeded(claim, rows=2, next_state=ChunkState.RUNNING)])
    assert await requeue_expired(database) == (1, [])
    halves = sandbox.query("SELECT rows, crashes, last_code, state FROM chunks ORDER BY first_job_id")
    assert halves == [(5, 0, "worker_lost", "queued"), (5, 0, "worker_lost", "queued")]
    claimed = [await claim_queued(database), await claim_queued(database)]
    jobs = [job.job_id for found in claimed for job in found.jobs]
    assert jobs == list(stored.job_ids[2:])
    await settlement.settle(database, [succeeded(found) for found in claimed])
    progress = await batch_progress(database, stored.batch_id)
    assert (progress.jobs, progress.succeeded, progress.finished) == (10, 10, True)


async def test_only_a_single_row_is_poison_after_its_third_lost_worker(database: Database) -> None:
    stored = await store_batch(database, 4)
    poison = stored.job_ids[3]
    for _ in range(40):
        claim = await claim_next(database, lease=EXPIRED)
        if claim is None:
            break
        if any(job.job_id == poison for job in claim.jobs):
            await requeue_expired(database)
        else:
            await settlement.settle(database, [succeeded(claim)])
    found = await queries.outcomes_of(database, list(stored.job_ids))
    assert [found[job_id].state for job_id in stored.job_ids] == [JobState.SUCCEEDED] * 3 + [JobState.FAILED]
    error = found[poison].error
    assert error is not None
    assert error.code is ErrorCode.CRASHED_WORKER


async def test_the_second_half_of_a_lost_chunk_keeps_its_fence_and_cancels(database: Database) -> None:
    stored = await store_batch(database, 4)
    await claim_queued(database, lease=EXPIRED)
    await cancellation.cancel(database, stored.job_ids[3])
    await requeue_expired(database)
    halves = [await claim_queued(database), await claim_queued(database)]
    second = next(half for half in halves if half.first_job_id == stored.job_ids[2])
    assert second.fence > 1, "a stream of the first run must not look newer than one of this run"
    assert [job.job_id for job in second.jobs] == [stored.job_ids[2]]


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (recovery._EXPIRED_LEASES.replace("%(lease)s", "'20 s'"), "ix_chunks_running"),
        (recovery._RUNNABLE.replace("%(most)s", "8"), "ix_chunks_queued"),
        (recovery._DUE.replace("%(chunks)s", "256"), "ix_chunks_"),
    ],
)
async def test_a_look_at_a_large_table_reads_partial_indexes_only(
    database: Database, sandbox: Sandbox, statement: str, index: str
) -> None:
    sandbox.query(
        """INSERT INTO chunks (first_job_id, rows, tenant, model, lane, state, finished_at)
           SELECT 100000 + n, 1, 'default', 'm', 'bulk', 'done', now() - interval '1 day'
           FROM generate_series(1, 50000) n"""
    )
    sandbox.query("ANALYZE chunks")
    await store_batch(database, 10)
    plan = json.dumps(sandbox.query(f"EXPLAIN (FORMAT JSON) {statement}")[0][0])
    assert index in plan
    assert not re.search(r'"Node Type": "Seq Scan"[^{}]*"Relation Name": "chunks"', plan)
