"""Outcomes are stored, each job once. The primary key of `outcomes` decides every race."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import orjson

from pipeline.store.database import Database
from pipeline.store.replays import series_of
from schemas.errors import ErrorCode
from schemas.ids import JobId
from schemas.results import JobState
from schemas.timings import Timings, Usage


class NextState(StrEnum):
    """What becomes of a chunk after a write."""

    RUNNING = "running"  # more rows of it are under way
    DONE = "done"  # every row has an outcome
    QUEUED = "queued"  # goes back: handed over, or to be tried again later


@dataclass(slots=True)
class SettledRow:
    """The outcome of one row.

    Attributes:
        series: that the claim named.
        answer: the result's JSON.
        answer_key: under which later jobs that ask the same find it; None where they should not.
        cached_from: the job whose answer this is a copy of.
        batch_rows: rows of the engine request that answered it.
    """

    job_id: JobId
    series: int
    state: JobState
    answer: bytes | None = None
    code: ErrorCode | None = None
    message: str | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    tries: int = 0
    model: str | None = None
    model_revision: str | None = None
    endpoint: str | None = None
    engine_version: str | None = None
    template_hash: str | None = None
    simulated: bool = False
    answer_key: UUID | None = None
    cached_from: JobId | None = None
    batch_rows: int | None = None


@dataclass(frozen=True, slots=True)
class FailedTry:
    """An engine attempt of a row that failed and counted."""

    job_id: JobId
    series: int
    try_number: int
    code: ErrorCode
    endpoint: str | None


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run has to say in one write: rows settled, tries failed, and what becomes of the chunk.

    Attributes:
        delay: with QUEUED, when it may be taken again.
        retry: with QUEUED, whether this was a failed round (it lengthens the next delay) or a hand-over.
    """

    first_job_id: JobId
    fence: int
    rows: Sequence[SettledRow] = ()
    failures: Sequence[FailedTry] = ()
    next_state: NextState = NextState.RUNNING
    delay: timedelta = timedelta()
    retry: bool = False
    code: ErrorCode | None = None


_SETTLE = """
WITH report AS (
    SELECT * FROM json_to_recordset(%(reports)s::json)
        AS r(chunk bigint, fence int, next_state text, delay float8, retry bool, code text)
), held AS MATERIALIZED (
    SELECT c.first_job_id, c.rows, c.fence FROM chunks c
    JOIN report r ON r.chunk = c.first_job_id AND r.fence = c.fence
    WHERE c.state = 'running' ORDER BY c.first_job_id FOR UPDATE OF c
), given AS MATERIALIZED (
    SELECT g.* FROM json_to_recordset(%(rows)s::json) AS g(
        chunk bigint, fence int, job_id bigint, series smallint, state text, tries smallint, simulated bool,
        prompt_tokens int, completion_tokens int, answer_key uuid, cached_from bigint, batch_rows smallint,
        queue_wait_seconds real, batch_wait_seconds real, first_token_seconds real, engine_seconds real, total_seconds real,
        code text, message text, model text, model_revision text, endpoint text, engine_version text, template_hash text,
        answer json
    ) JOIN held h ON h.first_job_id = g.chunk AND h.fence = g.fence
), stored AS (
    INSERT INTO outcomes (job_id, series, state, tries, simulated, prompt_tokens, completion_tokens, queue_wait_seconds,
        batch_wait_seconds, first_token_seconds, engine_seconds, total_seconds, code, message, model,
        model_revision, endpoint, engine_version, template_hash, cached_from, batch_rows, answer)
    SELECT job_id, series, state, tries, simulated, prompt_tokens, completion_tokens, queue_wait_seconds,
        batch_wait_seconds, first_token_seconds, engine_seconds, total_seconds, code, message, model,
        model_revision, endpoint, engine_version, template_hash, cached_from, batch_rows, answer
    FROM given ON CONFLICT DO NOTHING RETURNING job_id, state, prompt_tokens, completion_tokens, cached_from
), known AS (
    -- The newest answer is the one to find: an older one may have gone, or have lost to a cancel and lead nowhere.
    INSERT INTO answers (key, job_id, series)
    SELECT DISTINCT ON (answer_key) answer_key, job_id, series FROM given WHERE answer_key IS NOT NULL ORDER BY answer_key
    ON CONFLICT (key) DO UPDATE SET job_id = excluded.job_id, series = excluded.series, created_at = excluded.created_at
), failed AS (
    INSERT INTO failures (job_id, series, try_number, code, endpoint)
    SELECT f.job_id, f.series, f.try_number, f.code, f.endpoint FROM json_to_recordset(%(failures)s::json)
        AS f(chunk bigint, fence int, job_id bigint, series smallint, try_number smallint, code text, endpoint text)
    JOIN held h ON h.first_job_id = f.chunk AND h.fence = f.fence ON CONFLICT DO NOTHING
), counted AS (
    -- By the chunk's range and not by the row given: two lists of thousands would be compared each with each.
    SELECT h.first_job_id AS chunk, count(*) FILTER (WHERE s.state = 'succeeded') AS succeeded,
        count(*) FILTER (WHERE s.state = 'failed') AS failed,
        count(*) FILTER (WHERE s.state = 'expired') AS expired, count(s.cached_from) AS cached,
        sum(s.prompt_tokens) AS prompt_tokens, sum(s.completion_tokens) AS completion_tokens
    FROM stored s JOIN held h ON s.job_id >= h.first_job_id AND s.job_id < h.first_job_id + h.rows GROUP BY h.first_job_id
)
UPDATE chunks c SET
    succeeded = c.succeeded + coalesce(n.succeeded, 0), failed = c.failed + coalesce(n.failed, 0),
    expired = c.expired + coalesce(n.expired, 0), cached = c.cached + coalesce(n.cached, 0),
    prompt_tokens = c.prompt_tokens + coalesce(n.prompt_tokens, 0),
    completion_tokens = c.completion_tokens + coalesce(n.completion_tokens, 0),
    state = r.next_state, last_code = coalesce(r.code, c.last_code),
    rounds = CASE WHEN r.retry THEN c.rounds + 1 ELSE c.rounds END,
    due_at = CASE WHEN r.next_state = 'queued' THEN now() + make_interval(secs => r.delay) ELSE c.due_at END,
    run_id = CASE WHEN r.next_state = 'running' THEN c.run_id END,
    lease_expires_at = CASE WHEN r.next_state = 'running' THEN c.lease_expires_at END,
    finished_at = CASE WHEN r.next_state = 'done' THEN now() END
FROM report r JOIN held h ON h.first_job_id = r.chunk AND h.fence = r.fence LEFT JOIN counted n ON n.chunk = r.chunk
WHERE c.first_job_id = r.chunk
RETURNING c.first_job_id, c.fence
"""


def _row(report: RunReport, row: SettledRow) -> dict[str, Any]:
    return {
        "chunk": report.first_job_id,
        "fence": report.fence,
        "job_id": row.job_id,
        "series": row.series,
        "state": row.state,
        "tries": row.tries,
        "simulated": row.simulated,
        "prompt_tokens": row.usage.prompt_tokens,
        "completion_tokens": row.usage.completion_tokens,
        "queue_wait_seconds": row.timings.queue_wait_seconds,
        "batch_wait_seconds": row.timings.batch_wait_seconds,
        "first_token_seconds": row.timings.first_token_seconds,
        "engine_seconds": row.timings.engine_seconds,
        "total_seconds": row.timings.total_seconds,
        "code": row.code,
        "message": row.message,
        "model": row.model,
        "model_revision": row.model_revision,
        "endpoint": row.endpoint,
        "engine_version": row.engine_version,
        "template_hash": row.template_hash,
        "answer_key": row.answer_key,
        "cached_from": row.cached_from,
        "batch_rows": row.batch_rows,
        "answer": None if row.answer is None else orjson.Fragment(row.answer),
    }


async def settle(database: Database, reports: Sequence[RunReport]) -> set[tuple[JobId, int]]:
    """Store what runs have to say, all in one statement.

    Where a cancel, an expiry or a former run was first, its outcome stays. A run whose fence is no longer the chunk's
    writes nothing. Safe to call again with the same reports, also after a commit whose reply was lost: rows that are there
    stay, and a chunk that left `running` is not touched.

    Returns:
        First job id and fence of the reports whose chunks were still held.

    Raises:
        StoreUnavailable: no database; nothing is known to be written, call again.
        ValueRefused: something in it cannot be stored; nothing was written.
    """
    arguments = {
        "reports": orjson.dumps(
            [
                {
                    "chunk": report.first_job_id,
                    "fence": report.fence,
                    "next_state": report.next_state,
                    "delay": report.delay.total_seconds(),
                    "retry": report.retry,
                    "code": report.code,
                }
                for report in reports
            ]
        ).decode(),
        "rows": orjson.dumps([_row(report, row) for report in reports for row in report.rows]).decode(),
        "failures": orjson.dumps(
            [
                {
                    "chunk": report.first_job_id,
                    "fence": report.fence,
                    "job_id": failure.job_id,
                    "series": failure.series,
                    "try_number": failure.try_number,
                    "code": failure.code,
                    "endpoint": failure.endpoint,
                }
                for report in reports
                for failure in report.failures
            ]
        ).decode(),
    }
    async with database.connection() as connection:
        cursor = await connection.execute(_SETTLE, arguments)
        return {(JobId(row["first_job_id"]), row["fence"]) for row in await cursor.fetchall()}


_CHUNK_OF = """
SELECT first_job_id, rows, reply_to FROM chunks WHERE first_job_id <= %s ORDER BY first_job_id DESC LIMIT 1 FOR UPDATE
"""
_STREAMED = "SELECT coalesce((request ->> 'stream')::bool, false) AS streamed FROM jobs WHERE job_id = %s"
_CANCEL = f"""
INSERT INTO outcomes (job_id, series, state, code, message)
VALUES (%(job)s, {series_of("%(job)s")}, 'cancelled', 'cancelled', 'cancelled before it was settled')
ON CONFLICT DO NOTHING RETURNING job_id
"""


@dataclass(frozen=True, slots=True)
class SettledOutside:
    """A job that was settled without a run: cancelled, expired in the queue, or given up.

    Attributes:
        reply_to: the channel of whoever waits for it.
        streamed: whether somebody may be reading its answer.
    """

    job_id: JobId
    reply_to: str | None
    streamed: bool


async def cancel(database: Database, job_id: JobId) -> tuple[bool, SettledOutside] | None:
    """Settle a job as cancelled unless it has an outcome already.

    The chunk only counts it. It is closed by the next claim, which finds what is left: counters of a chunk that was halved
    say nothing about its own rows.

    Returns:
        The job, and whether this cancelled it or it was settled already; None if there is no such job.
    """
    async with database.transaction() as connection:
        there = await (await connection.execute(_STREAMED, (job_id,))).fetchone()
        if there is None:
            return None
        while True:
            # The chunk first, as settling does. While we waited for it, it may have been halved: look again.
            chunk = await (await connection.execute(_CHUNK_OF, (job_id,))).fetchone()
            assert chunk is not None, "every job lies in a chunk"
            if job_id < chunk["first_job_id"] + chunk["rows"]:
                break
        stored = await (await connection.execute(_CANCEL, {"job": job_id})).fetchone()
        if stored is not None:
            await connection.execute(
                "UPDATE chunks SET cancelled = cancelled + 1 WHERE first_job_id = %s", (chunk["first_job_id"],)
            )
        return stored is not None, SettledOutside(job_id, chunk["reply_to"], there["streamed"])


__all__ = ["FailedTry", "NextState", "RunReport", "SettledOutside", "SettledRow", "cancel", "settle"]
