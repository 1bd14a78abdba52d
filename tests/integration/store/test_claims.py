"""Claims of chunks: who gets which, in which order, and again after a lost reply."""

import asyncio
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from pipeline.store import Database, cancellation, claims, recovery, settlement
from pipeline.store.batches import batch_outcomes
from pipeline.store.claims import Claim, Room
from pipeline.store.settlement import ChunkState
from schemas.doorbells import Lane
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import (
    EXPIRED,
    LEASE,
    claim_next,
    claim_queued,
    new_job,
    requeue_expired,
    store_batch,
    store_jobs,
    succeeded,
)


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


async def test_an_urgent_interactive_job_overtakes_those_that_came_before(database: Database) -> None:
    """Whatever chunk a doorbell names: it says that there is work, and the best is claimed."""
    first_of_those = await store_jobs(database, [new_job(f"row {i}") for i in range(40)], chunk_rows=1)
    urgent = await store_jobs(database, [new_job("now", priority=-100)])
    first = (first_of_those.chunks[0].first_job_id, uuid4())
    assert await claims.claim_named(database, [first], worker="w", lease=LEASE) == {}
    claim = await claim_queued(database, Lane.INTERACTIVE)
    assert claim.first_job_id == urgent.chunks[0].first_job_id
    assert set(await claims.claim_named(database, [first], worker="w", lease=LEASE)) == {first[1]}


async def test_doorbells_that_arrive_together_claim_different_chunks_in_order(database: Database) -> None:
    stored = await store_jobs(database, [new_job(f"row {i}") for i in range(20)], chunk_rows=1)
    one, two, late = ([uuid4() for _ in range(count)] for count in (8, 8, 8))

    async def claimed(run_ids: list[UUID]) -> dict[UUID, Claim]:
        return await claims.claim_best(database, "m", Lane.INTERACTIVE, run_ids, worker="w", lease=LEASE)

    first, second = await asyncio.gather(claimed(one), claimed(two))
    assert set(first) == set(one)
    assert set(second) == set(two)
    taken = {claim.first_job_id for claim in (*first.values(), *second.values())}
    assert taken == {chunk.first_job_id for chunk in stored.chunks[:16]}
    rest = await claimed(late)
    assert len(rest) == 4, "there are no more"
    assert {run: claim.first_job_id for run, claim in (await claimed(late)).items()} == {
        run: claim.first_job_id for run, claim in rest.items()
    }, "a claim that is repeated finds what it has"


async def test_a_mix_of_models_and_priorities_makes_as_few_chunks_as_a_sorted_batch(
    database: Database, sandbox: Sandbox
) -> None:
    jobs = [new_job(f"row {i}", model=f"m{i % 2}", priority=i % 3) for i in range(600)]
    stored = await store_batch(database, jobs, chunk_rows=50)
    assert len(stored.chunks) == 12
    assert {chunk.rows for chunk in stored.chunks} == {50}
    requests = dict(sandbox.query("SELECT job_id, convert_from(request, 'UTF8') FROM jobs"))
    for i, job_id in enumerate(stored.job_ids):
        assert f'"row {i}"' in requests[job_id]
    assert [one.job_id async for one in batch_outcomes(database, stored.batch_id, page_rows=70)] == list(stored.job_ids)


async def test_what_is_queued_is_counted_whatever_happens_to_it(database: Database, sandbox: Sandbox) -> None:
    async def depth() -> tuple[int, int]:
        (found,) = sandbox.query("SELECT coalesce(sum(jobs), 0)::int, coalesce(sum(chunks), 0)::int FROM queue_depths")
        (true,) = sandbox.query(
            """SELECT coalesce(sum(least(rows, greatest(0, rows - succeeded - failed - cancelled - expired))), 0)::int,
                      count(*)::int FROM chunks WHERE state = 'queued'"""
        )
        assert found == true
        return found[0], found[1]

    stored = await store_batch(database, 40)
    assert await depth() == (40, 4)
    run = await claim_queued(database, lease=EXPIRED)
    assert await depth() == (30, 3)
    await cancellation.cancel(database, stored.job_ids[39])
    assert await depth() == (29, 3)
    await requeue_expired(database)
    assert await depth() == (39, 5)
    run = await claim_queued(database)
    await settlement.settle(database, [succeeded(run, rows=2, next_state=ChunkState.QUEUED)])
    await depth()
    sandbox.query("UPDATE jobs SET deadline = now() - interval '1 s'")
    sandbox.query("UPDATE chunks SET deadline = now() - interval '1 s' WHERE state = 'queued'")
    await recovery.expire(database)
    assert await depth() == (0, 0)


@pytest.mark.parametrize("named", [True, False])
async def test_a_worker_claims_no_more_bytes_than_it_has_room_for_but_one_chunk_if_it_has_nothing_else(
    database: Database, named: bool
) -> None:
    large = replace(new_job(priority=0), request=b'{"x": "' + b"a" * 300_000 + b'"}')
    chunks = [(await store_jobs(database, [large])).chunks[0] for _ in range(4)]
    assert {chunk.bytes for chunk in chunks} == {len(large.request)}
    run_ids = [uuid4() for _ in chunks]

    async def claim(size: int, *, alone: bool = True) -> list[Claim]:
        room = Room(size, alone=alone)
        if named:
            wanted = [(chunk.first_job_id, run_id) for chunk, run_id in zip(chunks, run_ids, strict=True)]
            found = await claims.claim_named(database, wanted, worker="w", lease=LEASE, room=room)
        else:
            found = await claims.claim_best(
                database, "m", Lane.INTERACTIVE, run_ids, worker="w", lease=LEASE, room=room
            )
        return list(found.values())

    assert await claim(10, alone=False) == []
    assert len(await claim(10)) == 1
    found = await claim(3 * len(large.request))
    assert len(found) == (3 if named else 4), "a repeated claim finds its own chunk again"
    assert {one.bytes for one in found} == {len(large.request)}
