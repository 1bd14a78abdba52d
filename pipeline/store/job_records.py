"""Find jobs, and read everything that is stored of one: what its outcome says, who submitted it when, and its history."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

import orjson
from psycopg.types.json import Json

from pipeline.policies.chunking import LARGEST_CHUNK_ROWS
from pipeline.store import queries
from pipeline.store.database import Database
from pipeline.store.replays import is_current
from schemas.errors import ErrorCode
from schemas.ids import BatchId, JobId
from schemas.results import JobState, Outcome


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs to select; a field that is None selects all. Times are when they were submitted.

    Attributes:
        tags: all of them, with these values.
        crashed: whether a worker was lost while it held the job.
    """

    state: JobState | None = None
    kind: str | None = None
    model: str | None = None
    tenant: str | None = None
    batch_id: BatchId | None = None
    key: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    worker: str | None = None
    crashed: bool = False
    since: datetime | None = None
    until: datetime | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The fields that select, by name."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {
            name: value for name, value in values.items() if value is not None and value is not False and value != {}
        }


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """One event in the history of a job: a failed attempt, a lost worker, an outcome, or a decision."""

    at: datetime
    replay: int
    what: str
    code: ErrorCode | None
    message: str | None
    endpoint: str | None


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job: its outcome as it is now, and what its row and its chunk say.

    Attributes:
        position: in its batch, from 0.
        worker: that ran it last, or runs it.
        crashes: workers that were lost while they held it.
    """

    outcome: Outcome
    tenant: str
    batch_id: BatchId | None
    batch_name: str | None
    position: int | None
    submitted_at: datetime
    deadline: datetime | None
    lane: str | None
    priority: int | None
    worker: str | None
    crashes: int
    idempotency_key: str | None
    tags: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return the outcome with the other fields beside its own."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "outcome"}
        return self.outcome.model_dump(mode="json") | own


_REACH_OF_TAGS = 1_000_000
"""Ids that are searched for tags alone; nothing but the rows themselves says which tags they have."""
_REACH = LARGEST_CHUNK_ROWS - 1
_LOST = f"""SELECT 1 FROM lost_runs r WHERE r.first_job_id BETWEEN j.job_id - {_REACH} AND j.job_id
    AND r.first_job_id + r.rows > j.job_id AND NOT r.lives"""
_CHUNK = "SELECT * FROM chunks WHERE first_job_id <= j.job_id ORDER BY first_job_id DESC LIMIT 1"
# A tag stands in a request as `"name":"value"`. Few rows have these bytes, and only those are read as JSON.
_HAS_TAGS = """CASE WHEN position(%(needle)s::bytea in j.request) > 0
    THEN convert_from(j.request, 'UTF8')::jsonb -> 'tags' @> %(tags)s::jsonb ELSE false END"""
_CONDITIONS = {
    "state": "coalesce(o.state, CASE c.state WHEN 'done' THEN 'running' ELSE c.state END) = %(state)s",
    "kind": "j.kind = %(kind)s",
    "tenant": "j.tenant = %(tenant)s",
    "key": """j.job_id IN (SELECT job_id FROM idempotency_keys WHERE idempotency_key = %(key)s UNION ALL
        SELECT k.job_id FROM batches b JOIN chunks b_c ON b_c.batch_id = b.batch_id
        JOIN jobs k ON k.job_id BETWEEN b_c.first_job_id AND b_c.first_job_id + b_c.rows - 1
        WHERE b.idempotency_key = %(key)s)""",
    "tags": _HAS_TAGS,
    "crashed": f"EXISTS ({_LOST})",
    "since": "j.created_at >= %(since)s",
    "until": "j.created_at < %(until)s",
}
# Facts of a whole chunk, of which there are a thousand times fewer: it is chosen first.
_CONDITIONS_OF_CHUNKS = {
    "batch_id": "batch_id = %(batch_id)s",
    "model": "model = %(model)s",
    "worker": "starts_with(worker, %(worker)s)",
}
_FROM_CHUNKS = """FROM (SELECT * FROM chunks WHERE {conditions}) c
    JOIN jobs j ON j.job_id BETWEEN c.first_job_id AND c.first_job_id + c.rows - 1"""
_FROM_JOBS = f"FROM jobs j CROSS JOIN LATERAL ({_CHUNK}) c"
_FROM_LOST = f"""FROM (
        SELECT DISTINCT n AS job_id FROM lost_runs r, generate_series(r.first_job_id, r.first_job_id + r.rows - 1) n
    ) lost JOIN jobs j USING (job_id) CROSS JOIN LATERAL ({_CHUNK}) c"""
_CURRENT = f"""LEFT JOIN LATERAL (
    SELECT state FROM outcomes WHERE outcomes.job_id = j.job_id AND {is_current("outcomes")} LIMIT 1
) o ON true"""
_RECORDS = f"""
SELECT j.job_id, j.tenant, j.batch_id, b.name AS batch_name, j.position, j.created_at AS submitted_at, j.deadline, j.request,
    c.lane, c.priority, c.worker, k.idempotency_key, (SELECT count(*) FROM ({_LOST}) lost) AS crashes
FROM jobs j CROSS JOIN LATERAL ({_CHUNK}) c LEFT JOIN batches b ON b.batch_id = j.batch_id
LEFT JOIN idempotency_keys k ON k.job_id = j.job_id
WHERE j.job_id = ANY(%s) ORDER BY j.job_id DESC
"""


async def find_jobs(database: Database, selected: JobFilter, limit: int) -> list[JobRecord]:
    """Return the newest of these jobs, newest first."""
    given = selected.given
    if given.keys() <= {"state", "kind"}:
        found = await queries.recent_jobs(database, state=selected.state, kind=selected.kind, limit=limit)
        return await records_of(database, [outcome.job_id for outcome in found])
    conditions = [_CONDITIONS[name] for name in given if name in _CONDITIONS]
    of_chunks = [_CONDITIONS_OF_CHUNKS[name] for name in given if name in _CONDITIONS_OF_CHUNKS]
    arguments: dict[str, Any] = given | {"limit": limit}
    if selected.tags:
        name, value = next(iter(selected.tags.items()))
        arguments |= {"needle": orjson.dumps({name: value})[1:-1], "tags": Json(selected.tags)}
    if given.keys() == {"tags"}:
        conditions.append("j.job_id > (SELECT max(job_id) FROM jobs) - %(reach)s")
        arguments["reach"] = _REACH_OF_TAGS
    if of_chunks:
        source = _FROM_CHUNKS.format(conditions=" AND ".join(of_chunks))
    else:
        source = _FROM_LOST if selected.crashed else _FROM_JOBS
    order = "c.first_job_id DESC, j.job_id DESC" if of_chunks else "j.job_id DESC"  # the same order
    statement = f"""SELECT j.job_id {source} {_CURRENT} WHERE {" AND ".join(conditions) or "true"}
        ORDER BY {order} LIMIT %(limit)s"""
    async with database.connection() as connection:
        rows = await (await connection.execute(statement, arguments)).fetchall()
    return await records_of(database, [JobId(row["job_id"]) for row in rows])


async def records_of(database: Database, job_ids: Sequence[JobId]) -> list[JobRecord]:
    """Return these jobs, the newest first; ids without a job are left out."""
    async with database.connection() as connection:
        rows = await (await connection.execute(_RECORDS, (list(job_ids),))).fetchall()
    outcomes = await queries.outcomes_of(database, [JobId(row["job_id"]) for row in rows])
    own = [one.name for one in fields(JobRecord) if one.name not in {"outcome", "tags"}]
    return [
        JobRecord(
            outcomes[JobId(row["job_id"])],
            **{name: row[name] for name in own},
            tags=orjson.loads(row["request"]).get("tags", {}),
        )
        for row in rows
    ]


# In one moment: first the attempts, then what came of them.
_HISTORY = f"""
SELECT at, replay, what, code, message, endpoint FROM (
    SELECT 0 AS step, at, replay, 'attempt ' || attempt || ' failed' AS what, code, NULL AS message, endpoint
    FROM failed_attempts WHERE job_id = %(job)s
    UNION ALL SELECT 1, r.at, (SELECT count(*) FROM dead_letter_decisions d WHERE d.job_id = %(job)s
            AND d.decision = 'replayed' AND d.at < r.at),
        CASE WHEN r.lives THEN 'worker was silent' ELSE 'worker lost' END, 'worker_lost', r.worker, NULL
    FROM lost_runs r WHERE r.first_job_id BETWEEN %(job)s - {_REACH} AND %(job)s
        AND r.first_job_id + r.rows > %(job)s
    UNION ALL SELECT 2, settled_at, replay, state, code, message, endpoint FROM outcomes WHERE job_id = %(job)s
    UNION ALL SELECT 3, at, replay, decision, NULL, NULL, NULL FROM dead_letter_decisions WHERE job_id = %(job)s
) events ORDER BY replay, at, step
"""


async def history(database: Database, job_id: JobId) -> list[HistoryEvent]:
    """Return the history of a job in order; empty for a job without events."""
    async with database.connection() as connection:
        rows = await (await connection.execute(_HISTORY, {"job": job_id})).fetchall()
    return [HistoryEvent(**{**row, "code": ErrorCode(row["code"]) if row["code"] else None}) for row in rows]
