"""Batches: order, idempotency keys, many at once, outcomes."""

import asyncio

import pytest

from pipeline.store import Database, settlement
from pipeline.store.batches import StoredBatch, batch_outcomes
from pipeline.store.ids import JobIds
from schemas.errors import DuplicateJob
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import claim_next, new_job, store_batch, succeeded


async def test_jobs_of_a_batch_keep_their_order_and_their_bytes(database: Database, sandbox: Sandbox) -> None:
    stored = await store_batch(database, 25)
    assert list(stored.job_ids) == sorted(stored.job_ids)
    rows = sandbox.query("SELECT position, request FROM jobs ORDER BY job_id")
    assert rows == [(i, f'{{"kind":"intent",  "text":"row {i}"}}'.encode()) for i in range(25)]
    assert [chunk.rows for chunk in stored.chunks] == [10, 10, 5]


async def test_a_batch_key_returns_the_same_jobs_and_refuses_others(database: Database) -> None:
    first = await store_batch(database, 12, key="k")
    again = await store_batch(database, 12, key="k")
    assert again.job_ids == first.job_ids
    assert again.chunks == []
    with pytest.raises(DuplicateJob):
        await store_batch(database, 12, key="k", payload=b"y")


async def test_many_batches_at_once_share_the_pool(database: Database) -> None:
    ids = JobIds(database)

    async def submit() -> StoredBatch:
        return await store_batch(database, [new_job() for _ in range(1_500)], chunk_rows=500, ids=ids)

    async with asyncio.timeout(60):
        found = await asyncio.gather(*[submit() for _ in range(20)])
    allocated = [job_id for stored in found for job_id in stored.job_ids]
    assert len(set(allocated)) == len(allocated) == 30_000


async def test_outcomes_of_a_batch_come_in_the_order_of_its_jobs(database: Database) -> None:
    stored = await store_batch(database, 25)
    while claim := await claim_next(database):
        await settlement.settle(database, [succeeded(claim)])
    found = [outcome.job_id async for outcome in batch_outcomes(database, stored.batch_id, page_rows=7)]
    assert found == list(stored.job_ids)
