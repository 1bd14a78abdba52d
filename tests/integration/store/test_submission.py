"""Interactive jobs on their way into the store: idempotency keys and deadlines."""

import asyncio
from datetime import UTC, datetime, timedelta

from pipeline.store import Database, submission
from pipeline.store.ids import JobIds
from pipeline.store.new_rows import NewJob
from schemas.doorbells import Lane
from schemas.errors import DuplicateJob, QueueSaturated
from schemas.ids import JobId
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import claim_queued, new_job, store_jobs


async def test_a_key_returns_its_job_and_refuses_another(database: Database) -> None:
    first = await store_jobs(database, [new_job(key="k")])
    (job_id,) = first.entries
    assert isinstance(job_id, int)
    assert [chunk.first_job_id for chunk in first.chunks] == [job_id]
    later = await store_jobs(database, [new_job(key="k"), new_job(key="k", payload=b"q"), new_job()])
    again, other, free = later.entries
    assert again == job_id
    assert isinstance(other, DuplicateJob)
    assert str(job_id) in other.message
    assert isinstance(free, int)
    assert free != job_id
    assert [(chunk.first_job_id, chunk.rows) for chunk in later.chunks] == [(free, 1)]


async def test_two_processes_with_the_same_key_at_once_store_one_job(database: Database, sandbox: Sandbox) -> None:
    async def submit() -> JobId:
        (entry,) = (await store_jobs(database, [new_job(key="k")])).entries
        assert isinstance(entry, int)
        return entry

    found = await asyncio.gather(*[submit() for _ in range(8)])
    assert len(set(found)) == 1
    assert sandbox.query("SELECT count(*), sum(rows) FROM chunks") == [(1, 1)]


async def test_a_refused_job_that_another_process_stored_meanwhile_is_that_job(
    database: Database, sandbox: Sandbox
) -> None:
    """Both keys are stored by another process between the look-up and the insert; one job was refused before."""
    refusal = QueueSaturated("full")

    def admit(job: NewJob) -> QueueSaturated | None:
        for job_id, key in ((1, "full"), (2, "free")):
            sandbox.query(
                "INSERT INTO idempotency_keys VALUES ('default', %s, %s, 'p') ON CONFLICT DO NOTHING", key, job_id
            )
        return refusal if job.idempotency_key == "full" else None

    stored = await submission.insert_interactive(
        database,
        JobIds(database),
        [new_job(key="full"), new_job(key="free")],
        reply_to=None,
        chunk_rows=64,
        admit=admit,
    )
    assert stored.entries == [1, 2]
    assert stored.chunks == []


async def test_a_claim_says_how_long_ago_a_deadline_passed(database: Database) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    await store_jobs(database, [new_job(deadline=past), new_job()])
    claim = await claim_queued(database, Lane.INTERACTIVE)
    assert claim.jobs[0].seconds_to_deadline is not None
    assert -10 < claim.jobs[0].seconds_to_deadline < 0
    assert claim.jobs[1].seconds_to_deadline is None
