"""Lists of jobs."""

from pipeline.store import Database, cancellation, queries, settlement
from schemas.results import JobState
from tests.support.store_helpers import claim_queued, store_batch, succeeded


async def test_lists_by_state_find_exactly_the_jobs_in_it(database: Database) -> None:
    stored = await store_batch(database, 30)
    first = await claim_queued(database)
    await settlement.settle(database, [succeeded(first)])
    await cancellation.cancel(database, stored.job_ids[25])
    running = await claim_queued(database)
    expected = {
        None: list(stored.job_ids),
        JobState.SUCCEEDED: [job.job_id for job in first.jobs],
        JobState.CANCELLED: [stored.job_ids[25]],
        JobState.RUNNING: [job.job_id for job in running.jobs],
        JobState.QUEUED: [job_id for job_id in stored.job_ids[20:] if job_id != stored.job_ids[25]],
        JobState.FAILED: [],
    }
    for state, ids in expected.items():
        found = await queries.recent_jobs(database, state=state, kind="intent", limit=100)
        assert [outcome.job_id for outcome in found] == sorted(ids, reverse=True), state
        assert await queries.recent_jobs(database, state=state, kind="chat", limit=5) == []
    assert len(await queries.recent_jobs(database, state=None, kind=None, limit=3)) == 3
