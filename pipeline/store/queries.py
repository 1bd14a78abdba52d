"""Questions to the store: outcomes, lists, progress, rates. Nothing here writes."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from psycopg.rows import DictRow

from pipeline.store.database import Database
from pipeline.store.queue_depths import OPEN_ROWS
from pipeline.store.replays import stands
from schemas.errors import ErrorCode
from schemas.ids import BatchId, JobId
from schemas.results import JobError, JobState, Outcome
from schemas.timings import Timings, Usage

# A job's state follows from its outcome, or else from its chunk: the nearest one that begins at or before it.
_OUTCOMES = f"""
SELECT j.job_id, j.kind, coalesce(o.state, c.state) AS state, o.answer::text AS answer, coalesce(o.code, c.last_code) AS code,
       o.message, o.prompt_tokens, o.completion_tokens, o.queue_wait_seconds, o.batch_wait_seconds, o.first_token_seconds,
       o.engine_seconds, o.total_seconds, o.tries, coalesce(o.model, c.model) AS model,
       o.model_revision, o.endpoint, o.engine_version,
       o.template_hash, o.simulated, o.cached_from, o.batch_rows, o.job_id IS NOT NULL AS settled
FROM jobs j
LEFT JOIN LATERAL (
    SELECT * FROM outcomes WHERE outcomes.job_id = j.job_id AND {stands("outcomes")} LIMIT 1
) o ON true
LEFT JOIN LATERAL (
    SELECT state, model, last_code FROM chunks WHERE first_job_id <= j.job_id ORDER BY first_job_id DESC LIMIT 1
) c ON o.job_id IS NULL
"""


# What a waiting caller asks for a moment after it was told: the outcome alone, two primary keys, nothing to plan.
_SETTLED = f"""
SELECT o.job_id, j.kind, o.state, o.answer::text AS answer, o.code, o.message, o.prompt_tokens,
       o.completion_tokens, o.queue_wait_seconds, o.batch_wait_seconds, o.first_token_seconds, o.engine_seconds,
       o.total_seconds, o.tries, o.model, o.model_revision, o.endpoint, o.engine_version, o.template_hash, o.simulated,
       o.cached_from, o.batch_rows, true AS settled
FROM outcomes o JOIN jobs j ON j.job_id = o.job_id
WHERE o.job_id = ANY(%(ids)s) AND j.job_id = ANY(%(ids)s) AND {stands("o")}
"""


def _outcome(row: DictRow) -> Outcome:
    state = (
        JobState.RUNNING if row["state"] == "done" else JobState(row["state"])
    )  # a chunk's last commit is on its way
    error = None
    if state in {JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}:
        error = JobError(code=ErrorCode(row["code"]), message=row["message"] or "")
    elif row["code"] is not None and not row["settled"]:
        error = JobError(
            code=ErrorCode(row["code"]), message="its last try failed with this; it is tried again by itself"
        )
    fields: dict[str, Any] = {
        key: row[key]
        for key in (
            "model",
            "model_revision",
            "endpoint",
            "engine_version",
            "template_hash",
            "cached_from",
            "batch_rows",
        )
    }
    outcome = Outcome(
        job_id=JobId(row["job_id"]),
        kind=row["kind"],
        state=state,
        error=error,
        usage=Usage(prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"]),
        timings=Timings(**{key: row[key] for key in Timings.model_fields}),
        tries=row["tries"] or 0,
        simulated=bool(row["simulated"]),
        **fields,
    )
    if row["answer"] is None:
        return outcome
    return Outcome.model_validate({**outcome.model_dump(), "result": orjson.loads(row["answer"])})


async def outcomes_of(database: Database, job_ids: Sequence[JobId]) -> dict[JobId, Outcome]:
    """What is known of these jobs; ids without a job are left out."""
    async with database.connection() as connection:
        settled = await (await connection.execute(_SETTLED, {"ids": list(job_ids)})).fetchall()
        found = {outcome.job_id: outcome for outcome in map(_outcome, settled)}
        rest = [job_id for job_id in job_ids if job_id not in found]
        if rest:
            cursor = await connection.execute(f"{_OUTCOMES} WHERE j.job_id = ANY(%s)", (rest,))
            found |= {outcome.job_id: outcome for outcome in map(_outcome, await cursor.fetchall())}
        return found


async def job_of_key(database: Database, tenant: str, idempotency_key: str) -> JobId | None:
    """The job that was stored with a key, if there is one."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT job_id FROM job_keys WHERE tenant = %s AND idempotency_key = %s", (tenant, idempotency_key)
        )
        row = await cursor.fetchone()
    return None if row is None else JobId(row["job_id"])


async def batch_outcomes(database: Database, batch_id: BatchId, *, page_rows: int = 2_000) -> AsyncIterator[Outcome]:
    """Outcomes of a batch in the order its jobs were submitted, a page at a time."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT first_job_id, rows FROM chunks WHERE batch_id = %s ORDER BY first_job_id", (batch_id,)
        )
        ranges = [(row["first_job_id"], row["rows"]) for row in await cursor.fetchall()]
    page: list[int] = []
    for first, rows in ranges:
        page.extend(range(first, first + rows))
        if len(page) >= page_rows:
            for outcome in await _page(database, page):
                yield outcome
            page = []
    for outcome in await _page(database, page):
        yield outcome


async def _page(database: Database, ids: Sequence[int]) -> list[Outcome]:
    if not ids:
        return []
    found = await outcomes_of(database, [JobId(i) for i in ids])
    return [found[JobId(i)] for i in ids if JobId(i) in found]


# Each walks an index from its newest end and stops; a state that is rare has an index of its own.
_RECENT = "SELECT job_id FROM jobs j WHERE {kind} ORDER BY job_id DESC LIMIT %(limit)s"
_RECENT_SETTLED = """
SELECT o.job_id FROM outcomes o JOIN jobs j ON j.job_id = o.job_id
WHERE o.state = %(state)s AND {stands} AND {kind} ORDER BY o.job_id DESC LIMIT %(limit)s
"""
_RECENT_OPEN = """
SELECT j.job_id FROM chunks c
CROSS JOIN LATERAL generate_series(c.first_job_id + c.rows - 1, c.first_job_id, -1) AS id
JOIN jobs j ON j.job_id = id
WHERE c.state = %(state)s AND {kind} AND NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.job_id = id AND {stands})
ORDER BY c.first_job_id DESC, id DESC LIMIT %(limit)s
"""


async def recent_jobs(database: Database, *, state: JobState | None, kind: str | None, limit: int) -> list[Outcome]:
    """The newest jobs first."""
    by_state = {None: _RECENT, JobState.QUEUED: _RECENT_OPEN, JobState.RUNNING: _RECENT_OPEN}
    ids = by_state.get(state, _RECENT_SETTLED)
    ids = ids.format(kind="j.kind = %(kind)s" if kind else "true", stands=stands("o"))
    async with database.connection() as connection:
        arguments = {"state": state, "kind": kind, "limit": limit}
        found = [row["job_id"] for row in await (await connection.execute(ids, arguments)).fetchall()]
        rows = await (await connection.execute(f"{_OUTCOMES} WHERE j.job_id = ANY(%s)", (found,))).fetchall()
    return [_outcome(row) for row in sorted(rows, key=lambda row: -row["job_id"])]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is, in jobs; `cached` are those of the succeeded that were answered before."""

    jobs: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    cached: int
    running_chunks: int
    queued_chunks: int
    last_code: ErrorCode | None

    @property
    def settled(self) -> int:
        """Jobs that have an outcome."""
        return self.succeeded + self.failed + self.cancelled + self.expired

    @property
    def finished(self) -> bool:
        """Whether every job has an outcome."""
        return self.settled >= self.jobs


async def batch_progress(database: Database, batch_id: BatchId) -> Progress:
    """Sums over the batch's chunks; `last_code` is why something waits for another try, None if nothing does."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            """SELECT coalesce(sum(rows), 0)::bigint AS jobs, coalesce(sum(succeeded), 0)::bigint AS succeeded,
                      coalesce(sum(failed), 0)::bigint AS failed, coalesce(sum(cancelled), 0)::bigint AS cancelled,
                      coalesce(sum(expired), 0)::bigint AS expired, coalesce(sum(cached), 0)::bigint AS cached,
                      count(*) FILTER (WHERE state = 'running') AS running_chunks,
                      count(*) FILTER (WHERE state = 'queued') AS queued_chunks,
                      max(last_code) FILTER (WHERE state = 'queued') AS last_code
               FROM chunks WHERE batch_id = %s""",
            (batch_id,),
        )
        row = await cursor.fetchone()
    assert row is not None
    return Progress(**{**row, "last_code": ErrorCode(row["last_code"]) if row["last_code"] else None})


async def rows_per_second(database: Database, model: str) -> float | None:
    """How many rows a second one chunk of this model moved lately; None where nothing finished in the last hour."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            """SELECT sum(rows)::float8 / nullif(extract(epoch FROM sum(finished_at - started_at)), 0)::float8 AS rate FROM (
                   SELECT rows, started_at, finished_at FROM chunks
                   WHERE model = %s AND state = 'done' AND finished_at > now() - interval '1 hour' AND rows >= 8 AND fence = 1
                   ORDER BY finished_at DESC LIMIT 16
               ) recent""",
            (model,),
        )
        row = await cursor.fetchone()
    return None if row is None else row["rate"]


@dataclass(frozen=True, slots=True)
class QueueState:
    """What waits and runs for one model and lane. `oldest_at` is when the oldest queued chunk was stored."""

    model: str
    lane: str
    queued_chunks: int
    queued_jobs: int
    running_chunks: int
    running_jobs: int
    later_chunks: int
    oldest_at: datetime | None
    last_code: str | None


async def queue_states(database: Database) -> list[QueueState]:
    """Everything that is not done, by model and lane."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""SELECT model, lane, count(*) FILTER (WHERE state = 'queued') AS queued_chunks,
                      coalesce(sum({OPEN_ROWS}) FILTER (WHERE state = 'queued'), 0)::bigint
                          AS queued_jobs,
                      count(*) FILTER (WHERE state = 'running') AS running_chunks,
                      coalesce(sum({OPEN_ROWS}) FILTER (WHERE state = 'running'), 0)::bigint
                          AS running_jobs,
                      count(*) FILTER (WHERE state = 'queued' AND due_at > now()) AS later_chunks,
                      min(created_at) FILTER (WHERE state = 'queued') AS oldest_at,
                      max(last_code) FILTER (WHERE state = 'queued') AS last_code
               FROM chunks WHERE state <> 'done' GROUP BY model, lane ORDER BY model, lane"""
        )
        return [QueueState(**row) for row in await cursor.fetchall()]


__all__ = [
    "Progress",
    "QueueState",
    "batch_outcomes",
    "batch_progress",
    "job_of_key",
    "outcomes_of",
    "queue_states",
    "recent_jobs",
    "rows_per_second",
]
