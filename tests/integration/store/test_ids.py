"""Job ids and partitions."""

import asyncio

from pipeline.store import Database, queries, settlement
from pipeline.store.ids import BLOCK_JOBS, PARTITION_JOBS, JobIds
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import claim_queued, store_batch, succeeded


async def test_ids_are_allocated_in_blocks_and_never_twice(database: Database) -> None:
    ids, others = JobIds(database), JobIds(database)
    firsts = await ids.allocate([700, 700, 700]) + await others.allocate([5]) + await ids.allocate([300])
    runs = list(zip(firsts, [700, 700, 700, 5, 300], strict=True))
    allocated = [first + offset for first, count in runs for offset in range(count)]
    assert len(set(allocated)) == len(allocated)
    assert all(first // BLOCK_JOBS == (first + count - 1) // BLOCK_JOBS for first, count in runs)


async def test_a_job_beyond_the_first_partition_goes_into_its_own(database: Database, sandbox: Sandbox) -> None:
    sandbox.query("SELECT setval('job_id_blocks', %s)", PARTITION_JOBS // BLOCK_JOBS + 3)
    stored = await store_batch(database, 3)
    assert stored.job_ids[0] >= PARTITION_JOBS
    claim = await claim_queued(database)
    await settlement.settle(database, [succeeded(claim)])
    assert sandbox.query("SELECT count(*) FROM outcomes_1") == [(3,)]


async def test_a_partition_is_created_while_a_copy_is_open(database: Database, sandbox: Sandbox) -> None:
    await store_batch(database, 1)
    async with database.transaction() as connection:
        await connection.execute("LOCK TABLE jobs IN ROW EXCLUSIVE MODE")
        sandbox.query("SELECT setval('job_id_blocks', %s)", 3 * PARTITION_JOBS // BLOCK_JOBS)
        async with asyncio.timeout(30):
            stored = await store_batch(database, 1)
            assert await queries.outcomes_of(database, list(stored.job_ids))
    assert sandbox.query("SELECT count(*) FROM jobs_3") == [(1,)]
