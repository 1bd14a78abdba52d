"""The store alone: jobs, claims and settlements without a worker."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

from pipeline.store import Database, batches, claims, recovery, settlement, submission
from pipeline.store.batch_rows import BatchRows
from pipeline.store.batches import NewBatch, StoredBatch
from pipeline.store.cancellation import SettledWithoutRun
from pipeline.store.claims import Claim
from pipeline.store.ids import JobIds
from pipeline.store.new_rows import NewJob
from pipeline.store.settlement import ChunkState, SettledRow, Settlement
from pipeline.store.submission import Submission
from schemas.doorbells import Lane
from schemas.errors import ErrorCode
from schemas.results import JobState
from schemas.timings import Usage

LEASE = timedelta(seconds=30)
EXPIRED = timedelta(seconds=-1)
"""A lease that has expired when the claim is made."""


def admit_all(_: object = None) -> None:
    """Admit every job: a queue without a limit."""


def new_job(text: str = "hi", *, key: str | None = None, payload: bytes = b"p", **fields: Any) -> NewJob:
    """Return an intent job of the model `m` that is not stored yet; `fields` are those of NewJob."""
    request = f'{{"kind":"intent",  "text":"{text}"}}'.encode()
    given = {"kind": "intent", "tenant": "default", "request": request, "model": "m", "priority": 0}
    return NewJob(**{**given, "idempotency_key": key, "payload_hash": payload, **fields})


async def settle_all(database: Database, settlements: Sequence[Settlement]) -> None:
    """Settle, again for those whose chunk another process has locked at the moment."""
    left = list(settlements)
    while left:
        done = await settlement.settle(database, left)
        left = [one for one in left if (one.first_job_id, one.fence) in done.locked]


async def store_jobs(
    database: Database,
    jobs: Sequence[NewJob],
    *,
    reply_to: str | None = None,
    chunk_rows: int = 64,
    ids: JobIds | None = None,
) -> Submission:
    """Store interactive jobs."""
    return await submission.insert_interactive(
        database, ids or JobIds(database), jobs, reply_to=reply_to, chunk_rows=chunk_rows, admit=admit_all
    )


async def store_batch(
    database: Database,
    jobs: int | Sequence[NewJob],
    *,
    chunk_rows: int = 10,
    tenant: str = "default",
    key: str | None = None,
    payload: bytes = b"x",
    ids: JobIds | None = None,
) -> StoredBatch:
    """Store a batch: these jobs, or so many intent jobs of the same tenant."""
    with BatchRows() as rows:
        for job in [new_job(f"row {i}", tenant=tenant) for i in range(jobs)] if isinstance(jobs, int) else jobs:
            if rows.has_full_window:
                rows.close_window(chunk_rows)
            rows.add(job)
        rows.close_window(chunk_rows)
        batch = NewBatch("b", tenant, key, payload)
        return await batches.insert_batch(database, ids or JobIds(database), rows, batch, admit=admit_all)


async def claim_next(database: Database, lane: Lane = Lane.BULK, lease: timedelta = LEASE) -> Claim | None:
    """Claim the next chunk of the model `m`; None if no chunk is queued."""
    run_id = uuid4()
    return (await claims.claim_best(database, "m", lane, [run_id], worker="w", lease=lease)).get(run_id)


async def claim_queued(database: Database, lane: Lane = Lane.BULK, lease: timedelta = LEASE) -> Claim:
    """Claim the next chunk of the model `m`, which is queued."""
    claim = await claim_next(database, lane, lease)
    assert claim is not None
    return claim


async def requeue_expired(database: Database) -> tuple[int, list[SettledWithoutRun]]:
    """Do what recovery does with the chunks of leases that have expired and are not renewed."""
    return await recovery.requeue_lost(database, await recovery.expired_leases(database, LEASE))


def succeeded(claim: Claim, rows: int | None = None, next_state: ChunkState = ChunkState.DONE) -> Settlement:
    """Return a settlement in which the first rows of a claim succeeded."""
    settled = [
        SettledRow(
            job.job_id,
            job.replay,
            job.tenant,
            job.kind,
            JobState.SUCCEEDED,
            b'{"kind":"intent","label":"x"}',
            usage=Usage(prompt_tokens=3, completion_tokens=1),
        )
        for job in claim.jobs[:rows]
    ]
    return Settlement(claim.first_job_id, claim.fence, settled, next_state=next_state)


def failed(claim: Claim, code: ErrorCode = ErrorCode.INVALID_OUTPUT) -> Settlement:
    """Return a settlement in which every row of a claim failed for good."""
    settled = [
        SettledRow(
            job.job_id,
            job.replay,
            job.tenant,
            job.kind,
            JobState.FAILED,
            code=code,
            message="why",
            attempts=5,
            model="m",
        )
        for job in claim.jobs
    ]
    return Settlement(claim.first_job_id, claim.fence, settled, next_state=ChunkState.DONE)
