"""A batch that is read from a file: its row, and window after window of its jobs, each in one transaction.

Of several processes that read one file for one key, the last one to take over goes on; what the others add is refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from pipeline.store import custom_ids
from pipeline.store.copying import BatchJob, copy_chunks, copy_jobs
from pipeline.store.database import Database
from pipeline.store.ids import JobIds
from pipeline.store.new_rows import NewChunk, NewJob, RefusedRow, cut
from schemas.doorbells import Lane
from schemas.errors import BatchTakenOver, DuplicateJob
from schemas.ids import BatchId, JobId


class InputRow(NamedTuple):
    """A line that became a job; `held` until the canary of its batch has passed."""

    line: int
    custom_id: str
    job: NewJob
    held: bool = False


@dataclass(frozen=True, slots=True)
class InputWindow:
    """Consecutive lines of a file that are stored together.

    Attributes:
        after: the last line before it.
        upto: its last line.
        digest: over all lines up to there.
    """

    after: int
    upto: int
    digest: bytes
    rows: Sequence[InputRow]
    refused: Sequence[RefusedRow]


@dataclass(frozen=True, slots=True)
class BatchInput:
    """How far the file of a batch was read.

    Attributes:
        lines: that were read, all before them too.
        digest: over these lines.
        created: whether this call made the batch.
    """

    batch_id: BatchId
    complete: bool
    lines: int
    digest: bytes
    jobs: int
    refused: int
    expires_at: datetime | None
    cancelled: bool
    expired: bool
    created: bool


@dataclass(frozen=True, slots=True)
class NewInput:
    """A batch that is to be read from a file.

    Attributes:
        options: the settings as JSON.
        digest: over what is not in the lines but makes them other jobs.
        window: rows that have not run by then expire.
        canary_limit: of a batch that runs a canary first.
    """

    tenant: str
    key: str | None
    name: str
    weight: int
    options: bytes
    digest: bytes
    window: timedelta | None
    not_before: datetime | None
    canary_limit: float | None


_STATE = """batch_id, input_complete AS complete, input_lines AS lines, input_hash AS digest, jobs, refused, expires_at,
    cancelled_at IS NOT NULL AS cancelled, coalesce(expires_at <= now(), false) AS expired"""
_BEGIN = f"""
INSERT INTO batches AS b (tenant, idempotency_key, payload_hash, name, weight, jobs, options, input_complete, input_seen_at,
    input_hash, submitter, not_before, expires_at, canary, canary_limit)
VALUES (%(tenant)s, %(key)s, %(digest)b, %(name)s, %(weight)s, 0, %(options)b, false, now(), %(digest)b, %(submitter)s,
    %(not_before)s, greatest(now(), %(not_before)s) + %(window)s,
    CASE WHEN %(canary_limit)s::real IS NOT NULL THEN 'running' END, %(canary_limit)s)
ON CONFLICT (tenant, idempotency_key) DO UPDATE SET submitter = b.submitter
RETURNING {_STATE}, options, xmax = 0 AS created
"""
_FIND = f"SELECT {_STATE}, false AS created, submitter FROM batches WHERE batch_id = %s"


async def begin(database: Database, new: NewInput, submitter: UUID) -> BatchInput:
    """Make a batch whose rows follow, or return the one that has the key: `take_over` goes on with it.

    Raises:
        DuplicateJob: the key belongs to a batch that was not made of a file.
    """
    arguments = {name: getattr(new, name) for name in NewInput.__slots__} | {"submitter": submitter}
    async with database.connection() as connection:
        row = await (await connection.execute(_BEGIN, arguments)).fetchone()
        assert row is not None, "it inserts or updates"
        if row.pop("options") is None:
            raise DuplicateJob(
                f"idempotency_key: already used for batch {row['batch_id']}, which was not made of a file; use a new key",
                batch_id=row["batch_id"],
            )
    return _input(row)


async def take_over(database: Database, batch: BatchInput, submitter: UUID) -> None:
    """Go on with a batch; what the process that read its file before adds from now on is refused.

    Raises:
        BatchTakenOver: that one added lines since `batch` was looked at.
    """
    async with database.connection() as connection:
        cursor = await connection.execute(
            """UPDATE batches SET submitter = %s WHERE batch_id = %s AND input_lines = %s AND NOT input_complete""",
            (submitter, batch.batch_id, batch.lines),
        )
    if cursor.rowcount != 1:
        raise _taken_over(batch.batch_id)


async def state(database: Database, batch_id: BatchId, submitter: UUID | None) -> BatchInput:
    """Return how far a batch was read; `submitter` is the process that reads it, if only that one may know.

    Raises:
        BatchTakenOver: another process reads it meanwhile.
    """
    async with database.connection() as connection:
        row = await (await connection.execute(_FIND, (batch_id,))).fetchone()
    if row is None or submitter not in {None, row["submitter"]}:
        raise _taken_over(batch_id)
    del row["submitter"]
    return _input(row)


def _input(row: DictRow) -> BatchInput:
    return BatchInput(**{**row, "digest": bytes(row["digest"] or b"")})


def _taken_over(batch_id: BatchId) -> BatchTakenOver:
    return BatchTakenOver(
        f"another process reads the file of batch {batch_id} meanwhile; this one stops", batch_id=batch_id
    )


async def add_window(
    database: Database,
    ids: JobIds,
    batch: BatchInput,
    tenant: str,
    window: InputWindow,
    chunk_rows: int,
    submitter: UUID,
) -> list[NewChunk]:
    """Store a window of rows and how far the file was read, all or nothing; returns the chunks.

    Raises:
        BatchTakenOver: another process reads the file meanwhile, or this window is stored already; nothing was stored.
    """
    groups = _gathered(window.rows, chunk_rows)
    # Before the transaction: it holds a connection, and allocating ids may need another one of the same pool.
    firsts = await ids.allocate([len(group) for group in groups])
    chunks = [_chunk(first, group, tenant, batch) for first, group in zip(firsts, groups, strict=True)]
    async with database.transaction() as connection:
        await copy_jobs(connection, batch.batch_id, tenant, _rows(firsts, groups))
        await copy_chunks(connection, batch.batch_id, [(chunk, window.after + 1) for chunk in chunks])
        held = [first for first, group in zip(firsts, groups, strict=True) if group[0].held]
        if held:
            await connection.execute("UPDATE chunks SET due_at = 'infinity' WHERE first_job_id = ANY(%s)", (held,))
        cursor = await connection.execute(
            """UPDATE batches SET jobs = jobs + %(jobs)s, refused = refused + %(refused)s, input_lines = %(upto)s,
                   input_hash = %(digest)b, input_seen_at = now()
               WHERE batch_id = %(batch)s AND submitter = %(submitter)s AND input_lines = %(after)s AND NOT input_complete
                   AND cancelled_at IS NULL""",
            {
                "jobs": len(window.rows),
                "refused": len(window.refused),
                "upto": window.upto,
                "digest": window.digest,
                "batch": batch.batch_id,
                "submitter": submitter,
                "after": window.after,
            },
        )
        if cursor.rowcount != 1:
            raise _taken_over(batch.batch_id)  # also rolls back
        await _copy_refused(connection, batch.batch_id, tenant, window.refused)
    return chunks


def _gathered(rows: Sequence[InputRow], chunk_rows: int) -> list[list[InputRow]]:
    alike: dict[tuple[str, int, bool], list[InputRow]] = {}
    for row in rows:
        alike.setdefault((row.job.model, row.job.priority, row.held), []).append(row)
    groups: list[list[InputRow]] = []
    for own in alike.values():
        begin = 0
        for length in cut([len(row.job.request) for row in own], chunk_rows):
            groups.append(own[begin : begin + length])
            begin += length
    return groups


def _chunk(first: int, group: Sequence[InputRow], tenant: str, batch: BatchInput) -> NewChunk:
    jobs = [row.job for row in group]
    ends = [job.deadline for job in jobs if job.deadline is not None]
    if batch.expires_at is not None:
        ends.append(batch.expires_at)
    size = sum(len(job.request) for job in jobs)
    return NewChunk(
        JobId(first), len(jobs), jobs[0].model, tenant, Lane.BULK, jobs[0].priority, min(ends, default=None), size
    )


def _rows(firsts: Sequence[int], groups: Sequence[Sequence[InputRow]]) -> Iterator[BatchJob]:
    for first, group in zip(firsts, groups, strict=True):
        for job_id, row in enumerate(group, start=first):
            job = row.job
            yield BatchJob(job_id, row.line - 1, job.kind, job.deadline, job.streamed, job.request, row.custom_id)


async def _copy_refused(
    connection: AsyncConnection[DictRow], batch_id: BatchId, tenant: str, refused: Sequence[RefusedRow]
) -> None:
    if not refused:
        return
    async with connection.cursor().copy(
        "COPY refused_lines (batch_id, line, tenant, custom_id, code, message) FROM STDIN"
    ) as copy:
        for row in refused:
            await copy.write_row((batch_id, row.line, tenant, row.custom_id, row.code, row.message))


async def wait(database: Database, batch_id: BatchId, submitter: UUID) -> None:
    """Say that the process that reads a file lives and waits, so that its batch is not taken for abandoned."""
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE batches SET input_seen_at = now() WHERE batch_id = %s AND submitter = %s", (batch_id, submitter)
        )


async def complete(database: Database, batch_id: BatchId, lines: int, submitter: UUID) -> None:
    """Say that a file was read to its end, and forget the custom ids.

    Raises:
        BatchTakenOver: another process reads it meanwhile.
    """
    async with database.connection() as connection:
        cursor = await connection.execute(
            """UPDATE batches SET input_complete = true, payload_hash = input_hash, input_seen_at = now()
               WHERE batch_id = %s AND submitter = %s AND input_lines = %s""",
            (batch_id, submitter, lines),
        )
        if cursor.rowcount != 1:
            raise _taken_over(batch_id)
    await custom_ids.forget(database, batch_id)


async def refuse(
    database: Database, batch_id: BatchId, tenant: str, refused: Sequence[RefusedRow], submitter: UUID
) -> None:
    """Say that a file was refused as a whole, with the first of its lines that are no jobs. Its key becomes free."""
    async with database.transaction() as connection:
        cursor = await connection.execute(
            """UPDATE batches SET input_complete = true, failed_at = now(), idempotency_key = NULL, refused = %s
               WHERE batch_id = %s AND submitter = %s AND jobs = 0""",
            (len(refused), batch_id, submitter),
        )
        if cursor.rowcount != 1:
            raise _taken_over(batch_id)
        await _copy_refused(connection, batch_id, tenant, refused)
    await custom_ids.forget(database, batch_id)
