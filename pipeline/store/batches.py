"""Store batches, and read their progress and outcomes."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar, cast

from psycopg.rows import DictRow

from pipeline.store import queries
from pipeline.store.batch_rows import WINDOW_ROWS, BatchRows, Gathered
from pipeline.store.copying import BatchJob, copy_chunks, copy_jobs
from pipeline.store.database import Database
from pipeline.store.ids import JobIds
from pipeline.store.new_rows import NewChunk
from schemas.doorbells import Lane
from schemas.errors import BatchNotFound, DuplicateJob, ErrorCode, StoreUnavailable
from schemas.ids import BatchId, JobId
from schemas.results import Outcome

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What identifies a batch: its key within the tenant, and a hash over its jobs."""

    name: str
    tenant: str
    idempotency_key: str | None
    payload_hash: bytes


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch in the store; `chunks` is empty where it was stored before."""

    batch_id: BatchId
    job_ids: list[JobId]
    chunks: list[NewChunk]


_INSERT_BATCH = """
INSERT INTO batches (tenant, idempotency_key, payload_hash, name, jobs) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING RETURNING batch_id
"""


async def insert_batch(
    database: Database, ids: JobIds, rows: BatchRows, batch: NewBatch, *, admit: Callable[[], None]
) -> StoredBatch:
    """Store jobs submitted together, in their order, in one transaction with COPY.

    `admit` is called where the batch is not stored yet; what it raises stores nothing.

    Raises:
        DuplicateJob: the key was used for another batch.
    """
    # Before the transaction: it holds a connection, and allocating ids may need another one of the same pool.
    firsts = await ids.allocate([len(gathered.positions) for gathered in rows.chunks])
    job_ids = array("q", bytes(8 * len(rows)))
    for first, gathered in zip(firsts, rows.chunks, strict=True):
        for offset, position in enumerate(gathered.positions):
            job_ids[position] = first + offset
        await asyncio.sleep(0)  # let others of this loop run
    chunks = [_chunk(first, one, batch.tenant) for first, one in zip(firsts, rows.chunks, strict=True)]
    async with database.transaction() as connection:
        arguments = (batch.tenant, batch.idempotency_key, batch.payload_hash, batch.name, len(rows))
        row = await (await connection.execute(_INSERT_BATCH, arguments)).fetchone()
        if row is not None:
            admit()
            batch_id = BatchId(row["batch_id"])
            jobs = (BatchJob(job_ids[at], at, *job, None) for at, job in enumerate(rows.rows()))
            await copy_jobs(connection, batch_id, batch.tenant, jobs)
            await copy_chunks(
                connection, batch_id, [(chunk, of.window) for chunk, of in zip(chunks, rows.chunks, strict=True)]
            )
            return StoredBatch(batch_id, cast("list[JobId]", job_ids.tolist()), chunks)
    return await _known_batch(database, batch)


def _chunk(first: int, one: Gathered, tenant: str) -> NewChunk:
    rows = len(one.positions)
    return NewChunk(JobId(first), rows, one.model, tenant, Lane.BULK, one.priority, one.deadline, one.bytes)


async def _known_batch(database: Database, batch: NewBatch) -> StoredBatch:
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT batch_id, payload_hash FROM batches WHERE tenant = %s AND idempotency_key = %s",
            (batch.tenant, batch.idempotency_key),
        )
        row = await cursor.fetchone()
        if row is None:
            raise StoreUnavailable("the batch file of this key was refused at this moment; submit again")
        if bytes(row["payload_hash"]) != batch.payload_hash:
            raise DuplicateJob(
                f"idempotency_key: already used for batch {row['batch_id']}, which held other jobs; use a new key",
                batch_id=row["batch_id"],
            )
    batch_id = BatchId(row["batch_id"])
    return StoredBatch(batch_id, [job_id async for window in _windows(database, batch_id) for job_id in window], [])


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """Progress of a batch, in jobs; `cached` counts those of the succeeded that were answered from the cache.

    `last_code` is why a queued chunk waits for another attempt, None if none does.
    """

    jobs: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    cached: int
    last_code: ErrorCode | None

    @property
    def settled(self) -> int:
        """Jobs that have an outcome."""
        return self.succeeded + self.failed + self.cancelled + self.expired

    @property
    def finished(self) -> bool:
        """Whether every job has an outcome."""
        return self.settled >= self.jobs


async def batch_progress(database: Database, batch_id: BatchId) -> BatchProgress:
    """Return the sums over the chunks of a batch.

    Raises:
        BatchNotFound: there is no such batch.
    """
    async with database.connection() as connection:
        cursor = await connection.execute(
            """SELECT coalesce(sum(rows), 0)::bigint AS jobs, coalesce(sum(succeeded), 0)::bigint AS succeeded,
                      coalesce(sum(failed), 0)::bigint AS failed, coalesce(sum(cancelled), 0)::bigint AS cancelled,
                      coalesce(sum(expired), 0)::bigint AS expired, coalesce(sum(cached), 0)::bigint AS cached,
                      max(last_code) FILTER (WHERE state = 'queued') AS last_code,
                      bool_or(state = 'cancelled') AND NOT bool_or(state IN ('queued', 'running')) AS ended_by_cancel
               FROM chunks WHERE batch_id = %s""",
            (batch_id,),
        )
        row = await cursor.fetchone()
    if row is None or not row["jobs"]:  # chunks are stored with their batch
        raise BatchNotFound(f"there is no batch {batch_id}", batch_id=batch_id)
    if row.pop("ended_by_cancel"):  # rows that were cancelled with their batch have no outcomes
        row["cancelled"] = row["jobs"] - row["succeeded"] - row["failed"] - row["expired"]
    return BatchProgress(**{**row, "last_code": ErrorCode(row["last_code"]) if row["last_code"] else None})


class Reading(Protocol):
    """How a statement that reads is executed: once, or again while the database is away."""

    def __call__(self, read: Callable[[], Awaitable[T]], /) -> Awaitable[T]:
        """Execute it."""
        ...


def _once(read: Callable[[], Awaitable[T]], /) -> Awaitable[T]:
    return read()


async def batch_outcomes(
    database: Database, batch_id: BatchId, *, page_rows: int = 2_000, reading: Reading = _once
) -> AsyncIterator[Outcome]:
    """Yield the outcomes of a batch in the order its jobs were submitted, read a page at a time."""
    async for window in _windows(database, batch_id, reading):
        for start in range(0, len(window), page_rows):
            page = window[start : start + page_rows]
            for outcome in await reading(partial(_page, database, page)):
                yield outcome


async def _windows(database: Database, batch_id: BatchId, reading: Reading = _once) -> AsyncIterator[list[JobId]]:
    """Yield the ids of a batch window by window, in the order of its jobs."""
    chunks = await reading(partial(_chunks_of, database, batch_id))
    window: list[JobId] = []
    kinds: set[tuple[str, int]] = set()
    for chunk in chunks:
        window.extend(JobId(job_id) for job_id in range(chunk["first_job_id"], chunk["first_job_id"] + chunk["rows"]))
        kinds.add((chunk["model"], chunk["priority"]))
        if len(window) >= WINDOW_ROWS or chunk is chunks[-1]:
            yield window if len(kinds) == 1 else await reading(partial(_by_position, database, window))
            window, kinds = [], set()


async def _chunks_of(database: Database, batch_id: BatchId) -> list[DictRow]:
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT first_job_id, rows, model, priority FROM chunks WHERE batch_id = %s ORDER BY first_job_id",
            (batch_id,),
        )
        found = await cursor.fetchall()
    if not found:
        raise BatchNotFound(f"there is no batch {batch_id}", batch_id=batch_id)
    return found


async def _by_position(database: Database, job_ids: list[JobId]) -> list[JobId]:
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT job_id FROM jobs WHERE job_id = ANY(%s) ORDER BY position", (job_ids,)
        )
        return [JobId(row["job_id"]) for row in await cursor.fetchall()]


async def _page(database: Database, job_ids: Sequence[JobId]) -> list[Outcome]:
    found = await queries.outcomes_of(database, job_ids) if job_ids else {}
    return [found[job_id] for job_id in job_ids if job_id in found]
