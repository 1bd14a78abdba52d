"""Store jobs that callers wait for: rows first, so that a doorbell never names a job that is not stored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import psycopg
from psycopg.rows import DictRow

from pipeline.store.database import Database
from pipeline.store.ids import JobIds
from pipeline.store.new_rows import NewChunk, NewJob, cut, new_chunk
from schemas.doorbells import Lane
from schemas.errors import DuplicateJob, QueueSaturated
from schemas.ids import JobId

Entry = JobId | DuplicateJob | QueueSaturated


@dataclass(frozen=True, slots=True)
class Submission:
    """One entry a job, in order: its id, or why it was not stored; and the new chunks, one doorbell each."""

    entries: list[Entry]
    chunks: list[NewChunk]


_KEYS = """
SELECT tenant, idempotency_key, job_id, payload_hash FROM idempotency_keys
WHERE (tenant, idempotency_key) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
"""
_INSERT = """
WITH keys AS (
    -- In one order, so that two processes with the same keys wait for each other one way round only.
    INSERT INTO idempotency_keys (tenant, idempotency_key, job_id, payload_hash)
    SELECT * FROM unnest(%(tenants)s::text[], %(keys)s::text[], %(key_jobs)s::bigint[], %(hashes)b::bytea[])
        AS k(tenant, idempotency_key, job_id, payload_hash) ORDER BY tenant, idempotency_key
), stored AS (
    INSERT INTO jobs (job_id, kind, tenant, deadline, streamed, request)
    SELECT job_id, kind, tenant, deadline, streamed, request FROM ROWS FROM (
        json_to_recordset(%(jobs)s::json) AS (job_id bigint, kind text, tenant text, deadline timestamptz, streamed bool),
        unnest(%(requests)b::bytea[])
    ) AS j(job_id, kind, tenant, deadline, streamed, request)
)
INSERT INTO chunks (first_job_id, rows, model, tenant, lane, priority, deadline, bytes, reply_to)
SELECT first_job_id, rows, model, tenant, lane, priority, deadline, bytes, %(reply_to)s
FROM json_to_recordset(%(chunks)s::json) AS c(
    first_job_id bigint, rows int, model text, tenant text, lane text, priority smallint, deadline timestamptz, bytes bigint
)
"""


@dataclass(frozen=True, slots=True)
class _Placement:
    """New jobs by their index, with ids, in chunks."""

    job_ids: Mapping[int, JobId]
    chunks: list[NewChunk]


async def insert_interactive(
    database: Database,
    ids: JobIds,
    new: Sequence[NewJob],
    *,
    reply_to: str | None,
    chunk_rows: int,
    admit: Callable[[NewJob], QueueSaturated | None],
) -> Submission:
    """Store jobs that callers wait for; neighbours of one model, tenant and priority share a chunk.

    One statement for all. A key that is stored already returns its job, or
    DuplicateJob if that job is another. Safe to call again only for jobs with keys.

    Args:
        database: where to store them.
        ids: allocates job ids.
        new: the jobs.
        reply_to: channel of the producer that waits.
        chunk_rows: most rows of a chunk.
        admit: called once for each job that is not stored yet; a job that it refuses is not stored.
    """
    admitted: dict[int, QueueSaturated | None] = {}
    while True:
        entries: dict[int, Entry] = dict(await _known_keys(database, new))
        for index, job in enumerate(new):
            if index not in entries and index not in admitted:
                admitted[index] = admit(job)
        for index, refusal in admitted.items():
            if refusal is not None:
                entries.setdefault(index, refusal)  # a key that was stored meanwhile is that job
        fresh = {index: job for index, job in enumerate(new) if index not in entries}
        placed = await _place(ids, fresh, chunk_rows)
        try:
            await _insert(database, fresh, placed, reply_to)
        except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
            continue  # another process stored one of these keys meanwhile: look again
        entries |= placed.job_ids
        return Submission([entries[index] for index in range(len(new))], placed.chunks)


async def _known_keys(database: Database, new: Sequence[NewJob]) -> dict[int, JobId | DuplicateJob]:
    keyed = {i: (job.tenant, job.idempotency_key) for i, job in enumerate(new) if job.idempotency_key is not None}
    if not keyed:
        return {}
    async with database.connection() as connection:
        tenants, keys = zip(*keyed.values(), strict=True)
        cursor = await connection.execute(_KEYS, (list(tenants), list(keys)))
        stored = {(row["tenant"], row["idempotency_key"]): row for row in await cursor.fetchall()}
    return {index: _known(stored[key], new[index]) for index, key in keyed.items() if key in stored}


def _known(row: DictRow, job: NewJob) -> JobId | DuplicateJob:
    if bytes(row["payload_hash"]) == job.payload_hash:
        return JobId(row["job_id"])
    return DuplicateJob(
        f"idempotency_key: already used for job {row['job_id']}, which asked for something else; use a new key",
        job_id=row["job_id"],
    )


async def _place(ids: JobIds, fresh: Mapping[int, NewJob], chunk_rows: int) -> _Placement:
    """Give ids to jobs, chunk by chunk: one model, tenant and priority each."""
    alike: dict[tuple[str, str, int], list[int]] = {}
    for index, job in fresh.items():
        alike.setdefault((job.model, job.tenant, job.priority), []).append(index)
    groups: list[list[int]] = []
    for indexes in alike.values():
        start = 0
        for length in cut([len(fresh[i].request) for i in indexes], chunk_rows):
            groups.append(indexes[start : start + length])
            start += length
    firsts = await ids.allocate([len(group) for group in groups])
    job_ids: dict[int, JobId] = {}
    chunks: list[NewChunk] = []
    for first, group in zip(firsts, groups, strict=True):
        jobs = [fresh[index] for index in group]
        job_ids |= {index: JobId(first + offset) for offset, index in enumerate(group)}
        chunks.append(new_chunk(JobId(first), jobs, jobs[0].tenant, Lane.INTERACTIVE))
    return _Placement(job_ids, chunks)


async def _insert(database: Database, fresh: Mapping[int, NewJob], placed: _Placement, reply_to: str | None) -> None:
    if not fresh:
        return
    async with database.connection() as connection:
        await connection.execute(_INSERT, _insert_arguments(fresh, placed) | {"reply_to": reply_to})


def _insert_arguments(fresh: Mapping[int, NewJob], placed: _Placement) -> dict[str, Any]:
    jobs = [
        {
            "job_id": job_id,
            "kind": fresh[index].kind,
            "tenant": fresh[index].tenant,
            "deadline": fresh[index].deadline,
            "streamed": fresh[index].streamed,
        }
        for index, job_id in placed.job_ids.items()
    ]
    keyed = [(fresh[i], job_id) for i, job_id in placed.job_ids.items() if fresh[i].idempotency_key is not None]
    return {
        "tenants": [job.tenant for job, _ in keyed],
        "keys": [job.idempotency_key for job, _ in keyed],
        "key_jobs": [job_id for _, job_id in keyed],
        "hashes": [job.payload_hash for job, _ in keyed],
        "jobs": orjson.dumps(jobs).decode(),
        "requests": [fresh[index].request for index in placed.job_ids],
        "chunks": orjson.dumps(placed.chunks).decode(),
    }
