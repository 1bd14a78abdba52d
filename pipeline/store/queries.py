"""Read-only questions about jobs and queues. Batches are read in `batches`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import DictRow

from pipeline.store.database import Database
from pipeline.store.queue_depths import OPEN_ROWS, QUEUED_GROUPS
from pipeline.store.replays import is_current
from schemas.errors import ErrorCode
from schemas.ids import JobId
from schemas.results import JobError, JobState, Outcome, parse_result
from schemas.timings import Timings, Usage

_SAME_NAME = (
    "kind",
    "model",
    "model_revision",
    "endpoint",
    "engine_version",
    "template_hash",
    "cached_from",
    "batch_rows",
)
_COLUMNS = """o.answer, o.message, o.prompt_tokens, o.completion_tokens, o.queue_wait_seconds, o.batch_wait_seconds,
       o.first_token_seconds, o.engine_seconds, o.total_seconds, o.attempts, o.model_revision, o.endpoint,
       o.engine_version, o.template_hash, o.simulated, o.cached_from, o.batch_rows"""

# The state of a job follows from its outcome, or else from its chunk: the nearest one that begins at or before it.
_OUTCOMES = f"""
SELECT j.job_id, j.kind, coalesce(o.state, c.state) AS state,
       coalesce(o.code, CASE c.state WHEN 'cancelled' THEN 'cancelled' ELSE c.last_code END) AS code,
       coalesce(o.model, c.model) AS model, o.job_id IS NOT NULL AS settled, {_COLUMNS}
FROM jobs j
LEFT JOIN LATERAL (
    SELECT * FROM outcomes WHERE outcomes.job_id = j.job_id AND {is_current("outcomes")} LIMIT 1
) o ON true
LEFT JOIN LATERAL (
    SELECT state, model, last_code FROM chunks WHERE first_job_id <= j.job_id ORDER BY first_job_id DESC LIMIT 1
) c ON o.job_id IS NULL
"""
# What a waiting caller reads just after its notification: the outcome alone, by primary key.
_SETTLED = f"""
SELECT o.job_id, o.kind, o.state, o.code, o.model, true AS settled, {_COLUMNS}
FROM outcomes o WHERE o.job_id = ANY(%(ids)s) AND {is_current("o")}
"""


_WITH_ITS_BATCH = "cancelled with its batch"


def _outcome(row: DictRow) -> Outcome:
    return Outcome(
        **{name: row[name] for name in _SAME_NAME},
        job_id=JobId(row["job_id"]),
        # A chunk that is done has its last rows under way: their commit is not visible yet.
        state=JobState.RUNNING if row["state"] == "done" else JobState(row["state"]),
        result=None if row["answer"] is None else parse_result(row["answer"]),
        error=_error(row),
        usage=Usage(prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"]),
        timings=Timings(**{name: row[name] for name in Timings.model_fields}),
        attempts=row["attempts"] or 0,
        simulated=bool(row["simulated"]),
    )


def _error(row: DictRow) -> JobError | None:
    if row["code"] is None or row["state"] == JobState.SUCCEEDED:
        return None
    message = row["message"] or ""
    if not row["settled"]:
        cancelled = row["state"] == JobState.CANCELLED
        message = _WITH_ITS_BATCH if cancelled else "its last attempt failed with this; it is retried automatically"
    return JobError(code=ErrorCode(row["code"]), message=message)


async def outcomes_of(database: Database, job_ids: Sequence[JobId]) -> dict[JobId, Outcome]:
    """Return what is known of these jobs; ids without a job are left out."""
    async with database.connection() as connection:
        settled = await (await connection.execute(_SETTLED, {"ids": list(job_ids)})).fetchall()
        found = {outcome.job_id: outcome for outcome in map(_outcome, settled)}
        rest = [job_id for job_id in job_ids if job_id not in found]
        if rest:
            cursor = await connection.execute(f"{_OUTCOMES} WHERE j.job_id = ANY(%s)", (rest,))
            found |= {outcome.job_id: outcome for outcome in map(_outcome, await cursor.fetchall())}
        return found


async def job_of_key(database: Database, tenant: str, idempotency_key: str) -> JobId | None:
    """Return the job that was stored with a key; None if there is none."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT job_id FROM idempotency_keys WHERE tenant = %s AND idempotency_key = %s", (tenant, idempotency_key)
        )
        row = await cursor.fetchone()
    return None if row is None else JobId(row["job_id"])


# Each walks an index from its newest end and stops; an unusual state has an index of its own.
_RECENT = "SELECT job_id FROM jobs j WHERE {kind} ORDER BY job_id DESC LIMIT %(limit)s"
_RECENT_SETTLED = """
SELECT o.job_id FROM outcomes o JOIN jobs j ON j.job_id = o.job_id
WHERE o.state = %(state)s AND {is_current} AND {kind} ORDER BY o.job_id DESC LIMIT %(limit)s
"""
_RECENT_OPEN = """
SELECT j.job_id FROM chunks c
CROSS JOIN LATERAL generate_series(c.first_job_id + c.rows - 1, c.first_job_id, -1) AS id
JOIN jobs j ON j.job_id = id
WHERE c.state = %(state)s AND {kind} AND NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.job_id = id AND {is_current})
ORDER BY c.first_job_id DESC, id DESC LIMIT %(limit)s
"""


async def recent_jobs(database: Database, *, state: JobState | None, kind: str | None, limit: int) -> list[Outcome]:
    """Return the newest jobs, newest first."""
    by_state = {None: _RECENT, JobState.QUEUED: _RECENT_OPEN, JobState.RUNNING: _RECENT_OPEN}
    statement = by_state.get(state, _RECENT_SETTLED).format(
        kind="j.kind = %(kind)s" if kind else "true", is_current=is_current("o")
    )
    async with database.connection() as connection:
        arguments = {"state": state, "kind": kind, "limit": limit}
        found = [row["job_id"] for row in await (await connection.execute(statement, arguments)).fetchall()]
        rows = await (await connection.execute(f"{_OUTCOMES} WHERE j.job_id = ANY(%s)", (found,))).fetchall()
    return [_outcome(row) for row in sorted(rows, key=lambda row: -row["job_id"])]


async def rows_per_second(database: Database, model: str) -> float | None:
    """Return how many rows a second one chunk of this model finished lately; None without a chunk in the last hour."""
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
    """Jobs of one model and lane that are queued or running.

    Attributes:
        oldest_at: when the oldest queued chunk was stored.
        oldest_running_at: when the oldest running chunk was first claimed.
        last_code: why a queued chunk waits for another attempt.
    """

    model: str
    lane: str
    queued_jobs: int
    running_jobs: int
    oldest_at: datetime | None
    oldest_running_at: datetime | None
    last_code: str | None


# What is queued is counted by a trigger; what runs is little; the oldest is the first of a batch and priority, by an index.
_STATES = f"""
WITH RECURSIVE queued AS (
    SELECT model, lane, sum(jobs)::bigint AS jobs FROM queue_depths GROUP BY model, lane HAVING sum(chunks) > 0
), {QUEUED_GROUPS}, oldest AS (
    SELECT g.model, g.lane, min(h.created_at) AS at FROM groups g CROSS JOIN LATERAL (
        SELECT created_at FROM chunks c WHERE c.model = g.model AND c.lane = g.lane AND state = 'queued'
            AND coalesce(batch_id, 0) = g.batch AND priority = g.priority ORDER BY deadline, first_job_id LIMIT 1
    ) h GROUP BY g.model, g.lane
), running AS (
    SELECT model, lane, sum({OPEN_ROWS})::bigint AS jobs, min(started_at) AS since FROM chunks
    WHERE state = 'running' GROUP BY model, lane
)
SELECT model, lane, coalesce(q.jobs, 0) AS queued_jobs, coalesce(r.jobs, 0) AS running_jobs, o.at AS oldest_at,
    r.since AS oldest_running_at, (
        SELECT max(last_code) FROM chunks c
        WHERE c.model = coalesce(q.model, r.model) AND c.lane = coalesce(q.lane, r.lane)
            AND state = 'queued' AND last_code IS NOT NULL
    ) AS last_code
FROM queued q FULL JOIN running r USING (model, lane) LEFT JOIN oldest o USING (model, lane) ORDER BY model, lane
"""


async def queue_states(database: Database) -> list[QueueState]:
    """Return every model and lane that has a chunk which is not done."""
    async with database.connection() as connection:
        return [QueueState(**row) for row in await (await connection.execute(_STATES)).fetchall()]


async def unattended(database: Database) -> tuple[int, int, int]:
    """Return jobs whose worker is silent although they are running, dead letters, and bytes of the database."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""SELECT (SELECT coalesce(sum({OPEN_ROWS}), 0)::bigint FROM chunks
                        WHERE state = 'running' AND lease_expires_at < now() - interval '15 seconds') AS stuck,
                       (SELECT count(*) FROM outcomes o WHERE o.state = 'failed' AND NOT EXISTS (
                            SELECT FROM dead_letter_decisions d WHERE d.job_id = o.job_id AND d.replay = o.replay
                        )) AS dead, pg_database_size(current_database()) AS size"""
        )
        row = await cursor.fetchone()
    assert row is not None, "it counts"
    return row["stuck"], row["dead"], row["size"]
