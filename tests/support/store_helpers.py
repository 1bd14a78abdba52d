"""The store alone: jobs that come in, claims and reports, without a worker."""

from datetime import timedelta
from uuid import uuid4

from pipeline.store import Database, claims, recovery, submission
from pipeline.store.claims import Claim
from pipeline.store.ids import JobIds
from pipeline.store.settlement import ChunkState, SettledRow, SettledWithoutRun, Settlement
from pipeline.store.submission import NewJob, StoredBatch
from schemas.doorbells import Lane
from schemas.errors import ErrorCode
from schemas.results import JobState
from schemas.timings import Usage

LEASE = timedelta(seconds=30)
GONE = timedelta(seconds=-1)


def new(
    text: str = "hi", *, key: str | None = None, payload: bytes = b"p", priority: int = 0, **fields: object
) -> NewJob:
    """A job nobody has stored yet."""
    request = f'{{"kind":"intent",  "text":"{text}"}}'.encode()
    return NewJob("intent", "default", request, "m", priority, idempotency_key=key, payload_hash=payload, **fields)  # type: ignore[arg-type]


async def batch(database: Database, jobs: int, chunk_rows: int = 10, **fields: object) -> StoredBatch:
    """A stored batch of intents."""
    given: dict[str, object] = {"name": "b", "tenant": "default", "idempotency_key": None, "payload_hash": b"x"}
    return await submission.insert_batch(
        database,
        JobIds(database),
        [new(f"row {i}") for i in range(jobs)],
        chunk_rows=chunk_rows,
        admit=all_admitted,
        **(given | fields),  # type: ignore[arg-type]
    )


async def lost(database: Database) -> tuple[int, list[SettledWithoutRun]]:
    """What recovery does with runs that are expired_leases and silent."""
    return await recovery.requeue_lost(database, await recovery.expired_leases(database, LEASE))


def all_admitted(_: object = None) -> None:
    """A queue without an end."""


async def take(database: Database, lane: Lane = Lane.BULK, lease: timedelta = LEASE) -> Claim | None:
    """The next chunk."""
    return await claims.claim_best(database, "m", lane, uuid4(), worker="w", lease=lease)


def report(claim: Claim, rows: int | None = None, next_state: ChunkState = ChunkState.DONE) -> Settlement:
    """Each of the first rows succeeded."""
    settled = [
        SettledRow(
            job.job_id,
            job.replay,
            JobState.SUCCEEDED,
            b'{"kind":"intent","label":"x"}',
            usage=Usage(prompt_tokens=3, completion_tokens=1),
        )
        for job in claim.jobs[:rows]
    ]
    return Settlement(claim.first_job_id, claim.fence, settled, next_state=next_state)


def failed(claim: Claim, code: ErrorCode = ErrorCode.INVALID_OUTPUT) -> Settlement:
    """Each row failed for good."""
    settled = [
        SettledRow(job.job_id, job.replay, JobState.FAILED, code=code, message="why", attempts=5, model="m")
        for job in claim.jobs
    ]
    return Settlement(claim.first_job_id, claim.fence, settled, next_state=ChunkState.DONE)
