"""Jobs are found by what people know of them, and their history has the workers that were lost."""

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.store import Database, job_records, leases, settlement
from pipeline.store.job_records import JobFilter, JobRecord
from pipeline.store.new_rows import NewJob
from schemas.errors import ErrorCode
from schemas.ids import BatchId, JobId
from schemas.jobs import canonical, parse_job
from schemas.results import JobState
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import claim_next, claim_queued, requeue_expired, store_batch, store_jobs, succeeded


def job(*, tenant: str = "default", key: str | None = None, **tags: str) -> NewJob:
    request = canonical(parse_job({"kind": "intent", "text": "我要退款", "tags": tags, "tenant": tenant}))
    return NewJob("intent", tenant, request, "m", 0, idempotency_key=key, payload_hash=b"x" * 16)


async def found(database: Database, limit: int = 100, **fields: object) -> list[JobId]:
    records = await job_records.find_jobs(database, JobFilter(**fields), limit)  # type: ignore[arg-type]
    return sorted(record.outcome.job_id for record in records)


async def stored(database: Database, *jobs: NewJob) -> list[JobId]:
    entries = (await store_jobs(database, jobs)).entries
    return [JobId(entry) for entry in entries if isinstance(entry, int)]


async def one(database: Database, job_id: JobId) -> JobRecord:
    (record,) = await job_records.records_of(database, [job_id])
    return record


async def test_a_job_is_found_by_its_key_and_a_batch_by_its(database: Database) -> None:
    (single,) = await stored(database, job(key="call-7"))
    batch = await store_batch(database, [job(), job()], key="monday")
    assert await found(database, key="call-7") == [single]
    assert await found(database, key="monday") == batch.job_ids
    assert await found(database, key="other") == []
    assert await found(database, key="monday", tenant="other") == []
    assert (await one(database, single)).idempotency_key == "call-7"


async def test_jobs_are_found_by_their_tags_and_words_that_look_like_one_are_none(database: Database) -> None:
    wanted = await stored(database, job(call_id="c1", team='a"b\\c 中文'))
    decoy = NewJob(
        "intent", "default", b'{"kind":"intent","text":"\\"call_id\\":\\"c1\\""}', "m", 0, payload_hash=b"y" * 16
    )
    spelled = NewJob(
        "intent", "default", b'{"kind":"intent","text":"x","other":{"call_id":"c1"}}', "m", 0, payload_hash=b"z" * 16
    )
    await store_jobs(database, [decoy, spelled, job(call_id="c10")])
    assert await found(database, limit=1, tags={"call_id": "c1"}) == wanted, "a decoy takes no place"
    assert await found(database, tags={"call_id": "c1"}) == wanted
    assert await found(database, tags={"call_id": "c1", "team": 'a"b\\c 中文'}) == wanted
    assert await found(database, tags={"call_id": "c1", "team": "other"}) == []
    assert (await one(database, wanted[0])).tags == {"call_id": "c1", "team": 'a"b\\c 中文'}


async def test_jobs_are_found_by_batch_tenant_state_model_worker_and_time(database: Database, sandbox: Sandbox) -> None:
    batch = await store_batch(database, [job(tenant="shop")] * 5, tenant="shop", chunk_rows=2)
    others = await stored(database, job())
    claim = await claim_queued(database)
    await settlement.settle(database, [succeeded(claim)])
    done = [row.job_id for row in claim.jobs]
    assert await found(database, batch_id=batch.batch_id) == batch.job_ids
    assert await found(database, tenant="shop") == batch.job_ids
    assert await found(database, batch_id=batch.batch_id, state=JobState.SUCCEEDED) == done
    assert await found(database, tenant="shop", state=JobState.QUEUED) == batch.job_ids[2:]
    assert await found(database, model="m", kind="intent") == sorted([*batch.job_ids, *others])
    assert await found(database, model="other") == []
    assert await found(database, worker="w") == done
    assert await found(database, worker="%") == await found(database, worker="_") == []
    assert await found(database, batch_id=BatchId(0)) == []
    now = datetime.now(UTC)
    assert await found(database, since=now - timedelta(minutes=1)) == sorted([*batch.job_ids, *others])
    assert await found(database, until=now - timedelta(minutes=1)) == []
    assert len(await found(database, limit=2, tenant="shop")) == 2
    record = await one(database, batch.job_ids[3])
    assert (record.batch_id, record.batch_name, record.position, record.lane) == (batch.batch_id, "b", 3, "bulk")
    assert await found(database, batch_id=BatchId(99_999)) == []


@pytest.mark.parametrize("lives", [False, True])
async def test_a_lost_worker_is_in_the_history_of_its_jobs(database: Database, sandbox: Sandbox, lives: bool) -> None:
    batch = await store_batch(database, [job()] * 4, chunk_rows=4)
    claim = await claim_queued(database)
    sandbox.query("UPDATE chunks SET lease_expires_at = now() - interval '1 second'")
    await requeue_expired(database)
    if lives:
        await leases.take_crashes_back(database, [(claim.first_job_id, claim.fence)])
    for job_id in batch.job_ids:  # also those of the second half
        (event,) = await job_records.history(database, job_id)
        assert (event.what, event.code, event.message) == (
            "worker was silent" if lives else "worker lost",
            ErrorCode.WORKER_LOST,
            "w",
        )
        assert (await one(database, job_id)).crashes == (0 if lives else 1)
    assert await found(database, crashed=True) == ([] if lives else batch.job_ids)
    while claimed := await claim_next(database):
        await settlement.settle(database, [succeeded(claimed)])
    events = await job_records.history(database, batch.job_ids[-1])
    assert [one.what for one in events][-1] == "succeeded"
    assert [one.replay for one in events] == [0, 0]
