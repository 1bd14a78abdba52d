"""Jobs come in: rows first, so that a doorbell never rings for something that is not there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson
import psycopg

from pipeline.policies.chunking import LARGEST_CHUNK_BYTES, light_runs
from pipeline.store.database import Database
from pipeline.store.ids import JobIds
from schemas.doorbells import Lane
from schemas.errors import DuplicateJob, QueueSaturated
from schemas.ids import BatchId, JobId


@dataclass(frozen=True, slots=True)
class NewJob:
    """A checked job on its way into the store; `request` is its JSON, kept byte for byte."""

    kind: str
    tenant: str
    request: bytes
    model: str
    priority: int
    deadline: datetime | None = None
    idempotency_key: str | None = None
    payload_hash: bytes = b""


@dataclass(frozen=True, slots=True)
class NewChunk:
    """Consecutive new jobs that are claimed together."""

    first_job_id: JobId
    rows: int
    model: str
    tenant: str
    lane: Lane
    priority: int


@dataclass(frozen=True, slots=True)
class Stored:
    """Ids in the order of the jobs, and the chunks that a doorbell should ring for."""

    job_ids: list[JobId]
    chunks: list[NewChunk]


_KEYS = """
SELECT tenant, idempotency_key, job_id, payload_hash FROM job_keys
WHERE (tenant, idempotency_key) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
"""
_INSERT = """
WITH stored AS (
    INSERT INTO jobs (job_id, kind, tenant, deadline, request)
    SELECT job_id, kind, tenant, deadline, request
    FROM json_to_recordset(%(jobs)s::json) AS j(job_id bigint, kind text, tenant text, deadline timestamptz, request json)
)
INSERT INTO chunks (first_job_id, rows, model, tenant, lane, priority, deadline, reply_to)
SELECT first_job_id, rows, model, tenant, lane, priority, deadline, %(reply_to)s
FROM json_to_recordset(%(chunks)s::json)
    AS c(first_job_id bigint, rows int, model text, tenant text, lane text, priority smallint, deadline timestamptz)
"""
_INSERT_KEYS = """
INSERT INTO job_keys (tenant, idempotency_key, job_id, payload_hash)
SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bytea[])
"""
_INSERT_BATCH = """
INSERT INTO batches (tenant, idempotency_key, payload_hash, name, jobs) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING RETURNING batch_id
"""


async def insert_interactive(
    database: Database,
    ids: JobIds,
    new: Sequence[NewJob],
    *,
    reply_to: str | None,
    chunk_rows: int,
    admit: Callable[[NewJob], QueueSaturated | None],
) -> list[Stored | DuplicateJob | QueueSaturated]:
    """Store jobs that somebody waits for; neighbours of one model, tenant and priority share a chunk.

    One statement where no job has a key. A key that is there already returns its job, or DuplicateJob if that was another.
    Returns one entry a job. Safe to call again only for jobs with keys.

    `admit` is asked once of each job that is not there yet; what it refuses is not stored.
    """
    refused: dict[int, QueueSaturated | None] = {}
    while True:
        known = await _known_keys(database, new)
        for i, job in enumerate(new):
            if known[i] is None:
                if i not in refused:
                    refused[i] = admit(job)
                known[i] = refused[i]
        fresh = [i for i, entry in enumerate(known) if entry is None]
        if not fresh:
            return [entry for entry in known if entry is not None]
        groups = _group([(i, new[i]) for i in fresh], chunk_rows)
        firsts = await ids.take([len(group) for group in groups])
        placed = {
            index: JobId(first + k)
            for first, group in zip(firsts, groups, strict=True)
            for k, index in enumerate(group)
        }
        chunks = [
            NewChunk(
                JobId(first),
                len(group),
                new[group[0]].model,
                new[group[0]].tenant,
                Lane.INTERACTIVE,
                new[group[0]].priority,
            )
            for first, group in zip(firsts, groups, strict=True)
        ]
        try:
            await _insert(database, new, placed, chunks, groups, reply_to)
        except psycopg.errors.UniqueViolation:
            continue  # another process stored one of these keys meanwhile: look again
        by_job = {index: chunk for chunk, group in zip(chunks, groups, strict=True) for index in group}
        announced: set[int] = set()
        result: list[Stored | DuplicateJob | QueueSaturated] = []
        for i, entry in enumerate(known):
            if entry is not None:
                result.append(entry)
                continue
            chunk = by_job[i]
            first_seen = chunk.first_job_id not in announced
            announced.add(chunk.first_job_id)
            result.append(Stored([placed[i]], [chunk] if first_seen else []))
        return result


async def _known_keys(database: Database, new: Sequence[NewJob]) -> list[Stored | DuplicateJob | QueueSaturated | None]:
    keyed = [(job.tenant, job.idempotency_key) for job in new if job.idempotency_key is not None]
    if not keyed:
        return [None] * len(new)
    async with database.connection() as connection:
        cursor = await connection.execute(_KEYS, ([tenant for tenant, _ in keyed], [key for _, key in keyed]))
        there = {(row["tenant"], row["idempotency_key"]): row for row in await cursor.fetchall()}
    known: list[Stored | DuplicateJob | QueueSaturated | None] = []
    for job in new:
        row = there.get((job.tenant, job.idempotency_key))
        if row is None:
            known.append(None)
        elif bytes(row["payload_hash"]) == job.payload_hash:
            known.append(Stored([JobId(row["job_id"])], []))
        else:
            known.append(
                DuplicateJob(
                    f"idempotency_key: already used for job {row['job_id']}, which asked for something else; use a new key",
                    job_id=row["job_id"],
                )
            )
    return known


def _group(jobs: Sequence[tuple[int, NewJob]], chunk_rows: int) -> list[list[int]]:
    """Indexes of jobs that share a chunk: one model, tenant and priority, at most chunk_rows."""
    by_shape: dict[tuple[str, str, int], list[int]] = {}
    for index, job in jobs:
        by_shape.setdefault((job.model, job.tenant, job.priority), []).append(index)
    sizes = {index: len(job.request) for index, job in jobs}
    groups: list[list[int]] = []
    for indexes in by_shape.values():
        for k in range(0, len(indexes), chunk_rows):
            group = indexes[k : k + chunk_rows]
            for length in light_runs([sizes[i] for i in group], LARGEST_CHUNK_BYTES):
                groups.append(group[:length])
                group = group[length:]
    return groups


async def _insert(
    database: Database,
    new: Sequence[NewJob],
    placed: dict[int, JobId],
    chunks: Sequence[NewChunk],
    groups: Sequence[Sequence[int]],
    reply_to: str | None,
) -> None:
    job_rows = [
        {
            "job_id": job_id,
            "kind": new[i].kind,
            "tenant": new[i].tenant,
            "deadline": new[i].deadline,
            "request": orjson.Fragment(new[i].request),
        }
        for i, job_id in placed.items()
    ]
    chunk_rows = [
        {
            "first_job_id": chunk.first_job_id,
            "rows": chunk.rows,
            "model": chunk.model,
            "tenant": chunk.tenant,
            "lane": chunk.lane,
            "priority": chunk.priority,
            "deadline": min((deadline for i in group if (deadline := new[i].deadline)), default=None),
        }
        for chunk, group in zip(chunks, groups, strict=True)
    ]
    arguments = {
        "jobs": orjson.dumps(job_rows).decode(),
        "chunks": orjson.dumps(chunk_rows).decode(),
        "reply_to": reply_to,
    }
    keyed = [(new[i], job_id) for i, job_id in placed.items() if new[i].idempotency_key is not None]
    if not keyed:
        async with database.connection() as connection:
            await connection.execute(_INSERT, arguments)
        return
    async with database.transaction() as connection:
        await connection.execute(
            _INSERT_KEYS,
            (
                [job.tenant for job, _ in keyed],
                [job.idempotency_key for job, _ in keyed],
                [job_id for _, job_id in keyed],
                [job.payload_hash for job, _ in keyed],
            ),
        )
        await connection.execute(_INSERT, arguments)


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch in the store; `chunks` is empty where it was there already."""

    batch_id: BatchId
    job_ids: list[JobId]
    chunks: list[NewChunk]


async def insert_batch(
    database: Database,
    ids: JobIds,
    new: Sequence[NewJob],
    *,
    name: str,
    tenant: str,
    idempotency_key: str | None,
    payload_hash: bytes,
    chunk_rows: int,
    admit: Callable[[], None],
) -> StoredBatch:
    """Store jobs submitted together, in their order, in one transaction with COPY.

    `admit` is called where the batch is not there yet; what it raises stores nothing.

    Raises:
        DuplicateJob: the batch's key was used for another batch.
    """
    slices = _consecutive(new, chunk_rows)
    # Before the transaction: it holds a connection, and taking ids may need another of the same pool.
    firsts = await ids.take([end - start for start, end in slices])
    async with database.transaction() as connection:
        arguments = (tenant, idempotency_key, payload_hash, name, len(new))
        row = await (await connection.execute(_INSERT_BATCH, arguments)).fetchone()
        if row is not None:
            admit()
            batch_id = BatchId(row["batch_id"])
            job_ids = [
                JobId(first + k) for first, (start, end) in zip(firsts, slices, strict=True) for k in range(end - start)
            ]
            async with connection.cursor().copy(
                "COPY jobs (job_id, batch_id, line, kind, tenant, deadline, request) FROM STDIN"
            ) as copy:
                for line, (job_id, job) in enumerate(zip(job_ids, new, strict=True)):
                    await copy.write_row(
                        (job_id, batch_id, line, job.kind, job.tenant, job.deadline, job.request.decode())
                    )
            chunks = []
            async with connection.cursor().copy(
                "COPY chunks (first_job_id, rows, batch_id, model, tenant, lane, priority, deadline) FROM STDIN"
            ) as copy:
                for first, (start, end) in zip(firsts, slices, strict=True):
                    head = new[start]
                    chunk = NewChunk(JobId(first), end - start, head.model, tenant, Lane.BULK, head.priority)
                    deadline = min((job.deadline for job in new[start:end] if job.deadline), default=None)
                    await copy.write_row(
                        (first, chunk.rows, batch_id, head.model, tenant, Lane.BULK, head.priority, deadline)
                    )
                    chunks.append(chunk)
            return StoredBatch(batch_id, job_ids, chunks)
    return await _known_batch(database, tenant, idempotency_key, payload_hash)


def _consecutive(new: Sequence[NewJob], chunk_rows: int) -> list[tuple[int, int]]:
    """Slices of neighbours of one model and priority, at most chunk_rows long."""
    slices: list[tuple[int, int]] = []
    start = size = 0
    for i in range(1, len(new) + 1):
        size += len(new[i - 1].request)
        full = i - start == chunk_rows or (i < len(new) and size + len(new[i].request) > LARGEST_CHUNK_BYTES)
        if i == len(new) or full or (new[i].model, new[i].priority) != (new[start].model, new[start].priority):
            slices.append((start, i))
            start, size = i, 0
    return slices


async def _known_batch(
    database: Database, tenant: str, idempotency_key: str | None, payload_hash: bytes
) -> StoredBatch:
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT batch_id, payload_hash FROM batches WHERE tenant = %s AND idempotency_key = %s",
            (tenant, idempotency_key),
        )
        row = await cursor.fetchone()
        assert row is not None, "a batch that conflicts is there, and batches are never deleted"
        if bytes(row["payload_hash"]) != payload_hash:
            raise DuplicateJob(
                f"idempotency_key: already used for batch {row['batch_id']}, which held other jobs; use a new key",
                batch_id=row["batch_id"],
            )
        cursor = await connection.execute(
            """SELECT id AS job_id FROM chunks, generate_series(first_job_id, first_job_id + rows - 1) AS id
               WHERE batch_id = %s ORDER BY id""",
            (row["batch_id"],),
        )
        return StoredBatch(BatchId(row["batch_id"]), [JobId(found["job_id"]) for found in await cursor.fetchall()], [])


__all__ = ["NewChunk", "NewJob", "Stored", "StoredBatch", "insert_batch", "insert_interactive"]
