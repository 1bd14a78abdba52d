"""Claims of chunks: who gets which, in which order, and again after a lost reply."""

import asyncio
from uuid import uuid4

from pipeline.store import Database, claims, settlement
from pipeline.store.settlement import ChunkState
from schemas.doorbells import Lane
from tests.support.store_helpers import LEASE, claim_next, claim_queued, new_job, store_batch, succeeded


async def test_workers_at_once_never_claim_the_same_chunk(database: Database) -> None:
    await store_batch(database, 200)
    found = await asyncio.gather(*[claim_next(database) for _ in range(20)])
    chunks = [claim.first_job_id for claim in found if claim is not None]
    assert len(chunks) == len(set(chunks)) == 20
    assert await claim_next(database) is None


async def test_a_repeated_claim_whose_reply_was_lost_returns_the_same_rows(database: Database) -> None:
    await store_batch(database, 20)
    run_id = uuid4()
    (first,) = (await claims.claim_best(database, "m", Lane.BULK, [run_id], worker="w", lease=LEASE)).values()
    (again,) = (await claims.claim_best(database, "m", Lane.BULK, [run_id], worker="w", lease=LEASE)).values()
    assert again.first_job_id == first.first_job_id
    assert [job.job_id for job in again.jobs] == [job.job_id for job in first.jobs]
    assert again.fence == first.fence + 1


async def test_a_chunk_that_is_queued_long_overtakes_a_higher_priority(database: Database) -> None:
    old = await store_batch(database, 1)
    await store_batch(database, [new_job(priority=-3)])
    async with database.connection() as connection:
        for minutes, first in ((29, False), (41, True)):
            await connection.execute(
                "UPDATE chunks SET created_at = now() - make_interval(mins => %s) WHERE batch_id = %s",
                (minutes, old.batch_id),
            )
            claim = await claim_queued(database)
            assert (claim.batch_id == old.batch_id) is first
            await connection.execute("UPDATE chunks SET state = 'queued', run_id = NULL")


async def test_lower_priorities_go_first_then_the_batch_with_less_running(database: Database) -> None:
    big, small = await store_batch(database, 40), await store_batch(database, 10)
    urgent = await store_batch(database, [new_job(priority=-5)])
    order = [(await claim_queued(database)).batch_id for _ in range(3)]
    assert order[0] == urgent.batch_id
    assert {order[1], order[2]} == {big.batch_id, small.batch_id}


async def test_settled_rows_are_not_claimed_again(database: Database) -> None:
    await store_batch(database, 10)
    claim = await claim_queued(database)
    await settlement.settle(database, [succeeded(claim, rows=4, next_state=ChunkState.QUEUED)])
    again = await claim_queued(database)
    assert [job.job_id for job in again.jobs] == [job.job_id for job in claim.jobs[4:]]
