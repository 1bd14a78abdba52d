"""Dead letters: failed outcomes that nobody has decided about. A decision is a row, and its primary key decides every race."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from pipeline.store.database import Database
from schemas.errors import ErrorCode
from schemas.ids import BatchId, JobId


class Decision(StrEnum):
    """What a person decides about a dead letter."""

    REPLAYED = "replayed"  # it is run again, as the next series
    DISCARDED = "discarded"  # it stays failed, and is listed no more


@dataclass(frozen=True, slots=True)
class Letters:
    """Which dead letters are meant; what is None does not matter. Times are when they failed."""

    job_id: JobId | None = None
    batch_id: BatchId | None = None
    code: ErrorCode | None = None
    model: str | None = None
    tenant: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self == Letters()


_CONDITIONS = {
    "job_id": "o.job_id = %(job_id)s",
    "batch_id": "j.batch_id = %(batch_id)s",
    "code": "o.code = %(code)s",
    "model": "o.model = %(model)s",
    "tenant": "j.tenant = %(tenant)s",
    "since": "o.settled_at >= %(since)s",
    "until": "o.settled_at < %(until)s",
}


def _meant(letters: Letters) -> tuple[str, dict[str, Any]]:
    """The FROM and WHERE of dead letters, and its arguments. Jobs are joined only where they are asked."""
    arguments = {name: value for name in _CONDITIONS if (value := getattr(letters, name)) is not None}
    conditions = [_CONDITIONS[name] for name in arguments]
    undecided = "NOT EXISTS (SELECT 1 FROM decisions d WHERE d.job_id = o.job_id AND d.series = o.series)"
    return (
        f"FROM outcomes o JOIN jobs j ON j.job_id = o.job_id WHERE {' AND '.join([_FAILED, undecided, *conditions])}",
        arguments,
    )


_FAILED = "o.state = 'failed'"


@dataclass(frozen=True, slots=True)
class Group:
    """Dead letters of one code and model."""

    code: ErrorCode
    model: str | None
    jobs: int
    first_at: datetime
    last_at: datetime
    newest_job: JobId


async def groups(database: Database, letters: Letters) -> list[Group]:
    """How many there are by code and model, the most first."""
    source, arguments = _meant(letters)
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""SELECT o.code, o.model, count(*) AS jobs, min(o.settled_at) AS first_at, max(o.settled_at) AS last_at,
                       max(o.job_id) AS newest_job {source} GROUP BY o.code, o.model ORDER BY count(*) DESC, o.code, o.model""",
            arguments,
        )
        rows = await cursor.fetchall()
    return [Group(**{**row, "code": ErrorCode(row["code"]), "newest_job": JobId(row["newest_job"])}) for row in rows]


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter."""

    job_id: JobId
    series: int
    kind: str
    tenant: str
    batch_id: BatchId | None
    model: str | None
    code: ErrorCode
    message: str | None
    tries: int
    endpoint: str | None
    settled_at: datetime


async def listed(database: Database, letters: Letters, limit: int) -> list[Letter]:
    """The newest first."""
    source, arguments = _meant(letters)
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""SELECT o.job_id, o.series, j.kind, j.tenant, j.batch_id, o.model, o.code, o.message, o.tries, o.endpoint,
                       o.settled_at {source} ORDER BY o.job_id DESC LIMIT %(limit)s""",
            {**arguments, "limit": limit},
        )
        return [Letter(**{**row, "code": ErrorCode(row["code"])}) for row in await cursor.fetchall()]


@dataclass(frozen=True, slots=True)
class Happened:
    """Something that happened to a job: a failed try, an outcome, or a decision."""

    at: datetime
    series: int
    what: str
    code: ErrorCode | None
    message: str | None
    endpoint: str | None


async def history(database: Database, job_id: JobId) -> list[Happened]:
    """Everything that is known to have happened to a job, in order."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            """SELECT at, series, 'try ' || try_number || ' failed' AS what, code, NULL AS message, endpoint
               FROM failures WHERE job_id = %(job)s
               UNION ALL SELECT settled_at, series, state, code, message, endpoint FROM outcomes WHERE job_id = %(job)s
               UNION ALL SELECT at, series, decision, NULL, NULL, NULL FROM decisions WHERE job_id = %(job)s
               ORDER BY series, at""",
            {"job": job_id},
        )
        return [
            Happened(**{**row, "code": ErrorCode(row["code"]) if row["code"] else None})
            for row in await cursor.fetchall()
        ]


@dataclass(frozen=True, slots=True)
class Slice:
    """Some dead letters that were decided about.

    Attributes:
        decided: letters that this call decided about.
        busy: letters left alone, since their chunk is not done yet.
        last: where the next slice begins; None after the last.
    """

    decided: int
    busy: int
    last: JobId | None


_CHUNK = """
CROSS JOIN LATERAL (
    SELECT first_job_id, rows FROM chunks WHERE first_job_id <= {job} ORDER BY first_job_id DESC LIMIT 1
) c
"""
# Whole chunks: once a part of one is replayed a worker may take it, and the other part would have to wait.
_CHOOSE = f"""
WITH next AS (
    SELECT o.job_id {{source}} AND o.job_id > %(after)s ORDER BY o.job_id LIMIT %(limit)s
), reach AS (
    SELECT c.first_job_id + c.rows - 1 AS last FROM (SELECT max(job_id) AS job_id FROM next) m {_CHUNK.format(job="m.job_id")}
)
SELECT o.job_id, o.series, c.first_job_id, (SELECT last FROM reach) AS last, (SELECT count(*) FROM next) AS rows
FROM (
    SELECT o.job_id, o.series {{source}} AND o.job_id > %(after)s AND o.job_id <= (SELECT last FROM reach)
) o {_CHUNK.format(job="o.job_id")} ORDER BY o.job_id
"""
# The chunk first, as settling does. One that runs belongs to its worker.
_LOCK = """
SELECT first_job_id, rows FROM chunks WHERE first_job_id = ANY(%s) AND state <> 'running' ORDER BY first_job_id FOR UPDATE
"""
_DECIDE = """
INSERT INTO decisions (job_id, series, decision) SELECT job_id, series, %(decision)s
FROM unnest(%(jobs)s::bigint[], %(series)s::smallint[]) AS l(job_id, series) ON CONFLICT DO NOTHING RETURNING job_id
"""
# Nobody waits for a replayed job: whatever lane it came in by, it goes back as bulk, and its age counts from now. A chunk that
# is queued already only gets more rows.
_REOPEN = """
UPDATE chunks c SET failed = c.failed - again.jobs, state = 'queued', fence = c.fence + 1, crashes = 0,
    lane = CASE WHEN c.state = 'done' THEN 'bulk' ELSE c.lane END,
    reply_to = CASE WHEN c.state = 'done' THEN NULL ELSE c.reply_to END,
    rounds = CASE WHEN c.state = 'done' THEN 0 ELSE c.rounds END,
    last_code = CASE WHEN c.state = 'done' THEN NULL ELSE c.last_code END,
    due_at = CASE WHEN c.state = 'done' THEN now() ELSE c.due_at END,
    created_at = CASE WHEN c.state = 'done' THEN now() ELSE c.created_at END,
    started_at = NULL, finished_at = NULL, deadline = least(c.deadline, (
        SELECT min(j.deadline) FROM jobs j
        WHERE j.job_id = ANY(%(jobs)s) AND j.job_id BETWEEN c.first_job_id AND c.first_job_id + c.rows - 1
    ))
FROM unnest(%(chunks)s::bigint[], %(counts)s::int[]) AS again(first_job_id, jobs) WHERE c.first_job_id = again.first_job_id
"""


async def decide(database: Database, letters: Letters, decision: Decision, *, after: JobId | None, limit: int) -> Slice:
    """Decide about the next dead letters by job id: so many, and what else is in the chunk of the last one; all or none.

    A replayed letter is queued again in the same transaction; one that is past its deadline is left alone. Safe to call
    again, and by several people at once: nobody decides twice about the same outcome. `after` is the end of the slice
    before, None to begin.
    """
    source, arguments = _meant(letters)
    if decision is Decision.REPLAYED:
        source += " AND (j.deadline IS NULL OR j.deadline > now())"  # it would only expire
    arguments |= {"after": -1 if after is None else after, "limit": limit}
    async with database.transaction() as connection:
        chosen = await (await connection.execute(_CHOOSE.format(source=source), arguments)).fetchall()
        if not chosen:
            return Slice(0, 0, None)
        chunks = sorted({row["first_job_id"] for row in chosen})
        free = {
            row["first_job_id"]: row["rows"] for row in await (await connection.execute(_LOCK, (chunks,))).fetchall()
        }
        # While we waited for a chunk, it may have been halved: what is no longer in it is somebody else's.
        mine = [row for row in chosen if row["job_id"] - row["first_job_id"] < free.get(row["first_job_id"], 0)]
        decided = await _write(connection, mine, decision)
    last = JobId(chosen[0]["last"]) if chosen[0]["rows"] == limit else None
    return Slice(decided, len(chosen) - len(mine), last)


async def _write(connection: AsyncConnection[DictRow], mine: Sequence[DictRow], decision: Decision) -> int:
    arguments = {
        "jobs": [row["job_id"] for row in mine],
        "series": [row["series"] for row in mine],
        "decision": decision,
    }
    decided = {row["job_id"] for row in await (await connection.execute(_DECIDE, arguments)).fetchall()}
    counts: dict[int, int] = {}
    for row in mine:
        if row["job_id"] in decided:
            counts[row["first_job_id"]] = counts.get(row["first_job_id"], 0) + 1
    if counts and decision is Decision.REPLAYED:
        again = {"chunks": list(counts), "counts": list(counts.values()), "jobs": sorted(decided)}
        await connection.execute(_REOPEN, again)
    return len(decided)


__all__ = ["Decision", "Group", "Happened", "Letter", "Letters", "Slice", "decide", "groups", "history", "listed"]
