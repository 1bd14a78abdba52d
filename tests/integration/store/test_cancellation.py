"""Jobs that are cancelled, before and while they run."""

import asyncio

from pipeline.store import Database, cancellation, leases, queries, settlement
from pipeline.store.batches import batch_progress
from pipeline.store.settlement import Settlement
from schemas.ids import JobId
from schemas.results import JobState
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import (
    EXPIRED,
    LEASE,
    claim_next,
    claim_queued,
    requeue_expired,
    settle_all,
    store_batch,
    succeeded,
)


async def cancel(database: Database, job_id: JobId) -> bool:
    """Cancel a job that exists; returns whether this call cancelled it."""
    found = await cancellation.cancel(database, job_id)
    assert found is not None
    return found[0]


async def test_a_cancelled_job_keeps_its_outcome(database: Database, sandbox: Sandbox) -> None:
    stored = await store_batch(database, 2)
    claim = await claim_queued(database)
    assert await cancel(database, stored.job_ids[0])
    assert not await cancel(database, stored.job_ids[0])
    assert await cancellation.cancel(database, JobId(1)) is None
    await settlement.settle(database, [succeeded(claim)])
    found = await queries.outcomes_of(database, list(stored.job_ids))
    assert [found[job_id].state for job_id in stored.job_ids] == [JobState.CANCELLED, JobState.SUCCEEDED]
    assert sandbox.query("SELECT succeeded, cancelled, state FROM chunks") == [(1, 1, "done")]


async def test_a_chunk_of_cancelled_rows_is_finished_and_claimed_empty(database: Database) -> None:
    stored = await store_batch(database, 2)
    for job_id in stored.job_ids:
        assert await cancel(database, job_id)
    assert (await batch_progress(database, stored.batch_id)).finished
    assert (await claim_queued(database)).jobs == ()


async def test_a_cancel_after_a_halving_leaves_the_neighbours_claimable(database: Database) -> None:
    stored = await store_batch(database, 10)
    claim = await claim_queued(database, lease=EXPIRED)
    rows = list(succeeded(claim).rows)
    await settlement.settle(database, [Settlement(claim.first_job_id, claim.fence, rows[5:8] + rows[:1])])
    await requeue_expired(database)
    assert await cancel(database, stored.job_ids[1])
    assert await cancel(database, stored.job_ids[9])
    while again := await claim_next(database):
        await settlement.settle(database, [succeeded(again)])
    found = await queries.outcomes_of(database, list(stored.job_ids))
    assert {outcome.state for outcome in found.values()} == {JobState.SUCCEEDED, JobState.CANCELLED}
    assert (await batch_progress(database, stored.batch_id)).finished


async def test_cancels_and_settlements_at_once_never_deadlock(database: Database) -> None:
    stored = await store_batch(database, 200)
    held = [await claim_queued(database) for _ in range(20)]
    results = await asyncio.gather(
        *[cancel(database, job_id) for job_id in stored.job_ids[::5]],
        *[settle_all(database, [succeeded(claim) for claim in held[start::4]]) for start in range(4)],
        leases.renew(database, [claim.run_id for claim in held], LEASE),
        return_exceptions=True,
    )
    assert [found for found in results if isinstance(found, BaseException)] == []
    progress = await batch_progress(database, stored.batch_id)
    assert (progress.settled, progress.finished) == (200, True)
