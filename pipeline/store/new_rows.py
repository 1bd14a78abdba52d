"""Jobs, chunks and refused lines on their way into the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pipeline.policies.chunking import LARGEST_CHUNK_BYTES
from schemas.doorbells import Lane
from schemas.errors import ErrorCode
from schemas.ids import JobId


@dataclass(slots=True)
class NewJob:
    """A prepared job; `request` is its JSON, stored byte for byte.

    Attributes:
        streamed: whether its answer is streamed to a reader.
        payload_hash: of what the caller asked for, to compare jobs of one idempotency key.
    """

    kind: str
    tenant: str
    request: bytes
    model: str
    priority: int
    deadline: datetime | None = None
    streamed: bool = False
    idempotency_key: str | None = None
    payload_hash: bytes = b""


@dataclass(frozen=True, slots=True)
class NewChunk:
    """Consecutive new jobs that are claimed together; `deadline` is the nearest of theirs, `bytes` those of their requests."""

    first_job_id: JobId
    rows: int
    model: str
    tenant: str
    lane: Lane
    priority: int
    deadline: datetime | None
    bytes: int


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A line of a file that is no job."""

    line: int
    custom_id: str | None
    code: ErrorCode
    message: str


def new_chunk(first_job_id: JobId, jobs: Sequence[NewJob], tenant: str, lane: Lane) -> NewChunk:
    """The chunk of jobs that share a model and priority."""
    deadline = min((job.deadline for job in jobs if job.deadline), default=None)
    size = sum(len(job.request) for job in jobs)
    return NewChunk(first_job_id, len(jobs), jobs[0].model, tenant, lane, jobs[0].priority, deadline, size)


def cut(sizes: Sequence[int], chunk_rows: int) -> list[int]:
    """Return lengths of the chunks of neighbours with requests of these sizes.

    A chunk has at most `chunk_rows` rows and LARGEST_CHUNK_BYTES.
    """
    lengths: list[int] = []
    rows = weight = 0
    for size in sizes:
        if rows and (rows == chunk_rows or weight + size > LARGEST_CHUNK_BYTES):
            lengths.append(rows)
            rows = weight = 0
        rows += 1
        weight += size
    return [*lengths, rows] if rows else lengths
