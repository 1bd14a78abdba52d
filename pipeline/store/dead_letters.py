"""Dead letters: failed outcomes without a decision. A decision is a row, and its primary key decides every race."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pipeline.store.database import Database
from schemas.errors import ErrorCode
from schemas.ids import BatchId, JobId


class Decision(StrEnum):
    """What a person decides about a dead letter."""

    REPLAYED = "replayed"  # it runs again, with the next replay number
    DISCARDED = "discarded"  # it stays failed and is no longer listed


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters to select; a field that is None selects all. Times are when they failed."""

    job_id: JobId | None = None
    batch_id: BatchId | None = None
    code: ErrorCode | None = None
    model: str | None = None
    tenant: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def selects_all(self) -> bool:
        """Whether no field is set."""
        return self == DeadLetterFilter()


_CONDITIONS = {
    "job_id": "o.job_id = %(job_id)s",
    "batch_id": "j.batch_id = %(batch_id)s",
    "code": "o.code = %(code)s",
    "model": "o.model = %(model)s",
    "tenant": "o.tenant = %(tenant)s",
    "since": "o.settled_at >= %(since)s",
    "until": "o.settled_at < %(until)s",
}
_DEAD = """o.state = 'failed' AND NOT EXISTS (
    SELECT 1 FROM dead_letter_decisions d WHERE d.job_id = o.job_id AND d.replay = o.replay)"""


def _where(selected: DeadLetterFilter, *, with_jobs: bool = True) -> tuple[str, dict[str, Any]]:
    """Return FROM and WHERE of the selected dead letters, and the arguments; without the rows of jobs if they say nothing."""
    arguments = {name: value for name in _CONDITIONS if (value := getattr(selected, name)) is not None}
    conditions = " AND ".join([_DEAD, *[_CONDITIONS[name] for name in arguments]])
    jobs = "JOIN jobs j ON j.job_id = o.job_id" if with_jobs or selected.batch_id is not None else ""
    return f"FROM outcomes o {jobs} WHERE {conditions}", arguments


@dataclass(frozen=True, slots=True)
class DeadLetterGroup:
    """Dead letters of one code and model."""

    code: ErrorCode
    model: str | None
    jobs: int
    first_at: datetime
    last_at: datetime
    newest_job: JobId


async def group_dead_letters(database: Database, selected: DeadLetterFilter) -> list[DeadLetterGroup]:
    """Count dead letters by code and model, the largest group first."""
    source, arguments = _where(selected, with_jobs=False)
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""SELECT o.code, o.model, count(*) AS jobs, min(o.settled_at) AS first_at, max(o.settled_at) AS last_at,
                       max(o.job_id) AS newest_job {source} GROUP BY o.code, o.model ORDER BY count(*) DESC, o.code, o.model""",
            arguments,
        )
        return [DeadLetterGroup(**{**row, "code": ErrorCode(row["code"])}) for row in await cursor.fetchall()]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter."""

    job_id: JobId
    replay: int
    kind: str
    tenant: str
    batch_id: BatchId | None
    model: str | None
    code: ErrorCode
    message: str | None
    attempts: int
    endpoint: str | None
    settled_at: datetime


async def list_dead_letters(database: Database, selected: DeadLetterFilter, limit: int) -> list[DeadLetter]:
    """Return dead letters, newest job first."""
    source, arguments = _where(selected)
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""SELECT o.job_id, o.replay, o.kind, o.tenant, j.batch_id, o.model, o.code, o.message, o.attempts, o.endpoint,
                       o.settled_at {source} ORDER BY o.job_id DESC LIMIT %(limit)s""",
            {**arguments, "limit": limit},
        )
        return [DeadLetter(**{**row, "code": ErrorCode(row["code"])}) for row in await cursor.fetchall()]


@dataclass(frozen=True, slots=True)
class DecisionPage:
    """The decisions of one transaction.

    Attributes:
        decided: dead letters that this call decided about.
        busy: dead letters skipped because their chunk is still running, or locked at this moment.
        last: pass it as `after` for the next page; None after the last page.
    """

    decided: int
    busy: int
    last: JobId | None


_CHUNK = """
CROSS JOIN LATERAL (
    SELECT first_job_id, rows FROM chunks WHERE first_job_id <= {job} ORDER BY first_job_id DESC LIMIT 1
) c
"""
# Whole chunks: once a part of a chunk is replayed a worker may claim it, and the rest would have to wait.
_CHOOSE = f"""
WITH next AS (
    SELECT o.job_id {{source}} AND o.job_id > %(after)s ORDER BY o.job_id LIMIT %(limit)s
), reach AS (
    SELECT c.first_job_id + c.rows - 1 AS last FROM (SELECT max(job_id) AS job_id FROM next) m {_CHUNK.format(job="m.job_id")}
)
SELECT o.job_id, o.replay, o.tenant, c.first_job_id, (SELECT last FROM reach) AS last, (SELECT count(*) FROM next) AS rows
FROM (
    SELECT o.job_id, o.replay, o.tenant {{source}} AND o.job_id > %(after)s AND o.job_id <= (SELECT last FROM reach)
) o {_CHUNK.format(job="o.job_id")} ORDER BY o.job_id
"""
# One statement: its locks are never held while this process does something else. The chunk first, as settling does; one
# that runs belongs to its worker, and one that another process has locked is decided about another time. A chunk may have been
# halved meanwhile: rows outside it belong to another chunk. No caller waits for a replayed job: whatever its lane was, it
# goes back as bulk, and its age counts from now. A chunk that is queued already only gets more rows.
_DECIDE = """
WITH chosen AS MATERIALIZED ({choose}), locked AS MATERIALIZED (
    SELECT first_job_id, rows FROM chunks WHERE first_job_id IN (SELECT first_job_id FROM chosen)
        AND state IN ('queued', 'done')  -- in a cancelled one the other rows would run too
    ORDER BY first_job_id FOR UPDATE SKIP LOCKED
), free AS MATERIALIZED (
    SELECT chosen.*, j.deadline FROM chosen JOIN locked USING (first_job_id) JOIN jobs j USING (job_id)
    WHERE chosen.job_id < locked.first_job_id + locked.rows
), decided AS (
    INSERT INTO dead_letter_decisions (job_id, replay, tenant, decision)
    SELECT job_id, replay, tenant, %(decision)s FROM free ON CONFLICT DO NOTHING RETURNING job_id
), again AS (
    SELECT first_job_id, count(*) AS jobs, min(deadline) AS deadline FROM free JOIN decided USING (job_id)
    WHERE %(decision)s = 'replayed' GROUP BY first_job_id
), reopened AS (
    UPDATE chunks c SET failed = c.failed - again.jobs, state = 'queued', fence = c.fence + 1, crashes = 0,
        lane = CASE WHEN c.state = 'done' THEN 'bulk' ELSE c.lane END,
        reply_to = CASE WHEN c.state = 'done' THEN NULL ELSE c.reply_to END,
        rounds = CASE WHEN c.state = 'done' THEN 0 ELSE c.rounds END,
        last_code = CASE WHEN c.state = 'done' THEN NULL ELSE c.last_code END,
        due_at = CASE WHEN c.state = 'done' THEN now() ELSE c.due_at END,
        created_at = CASE WHEN c.state = 'done' THEN now() ELSE c.created_at END,
        started_at = NULL, finished_at = NULL, deadline = least(c.deadline, again.deadline)
    FROM again WHERE c.first_job_id = again.first_job_id
)
SELECT count(*) AS chosen, (SELECT count(*) FROM free) AS free, (SELECT count(*) FROM decided) AS decided,
    max(last) AS last, max(rows) AS rows FROM chosen
"""


async def decide(
    database: Database, selected: DeadLetterFilter, decision: Decision, *, after: JobId | None, limit: int
) -> DecisionPage:
    """Decide about the next `limit` dead letters by job id and the rest of the last one's chunk; all or none.

    A replayed dead letter is queued again in the same transaction; one past its deadline is skipped.
    Safe to call again, and by several people at once: each outcome gets one decision.

    Args:
        database: where they are.
        selected: which dead letters.
        decision: replay or discard.
        after: `last` of the page before, None for the first page.
        limit: dead letters in a page, without the rest of the last chunk.
    """
    source, arguments = _where(selected)
    if decision is Decision.REPLAYED:
        source += " AND (j.deadline IS NULL OR j.deadline > now())"  # it would only expire
    arguments |= {"after": -1 if after is None else after, "limit": limit}
    arguments["decision"] = decision
    async with database.connection() as connection:
        statement = _DECIDE.format(choose=_CHOOSE.format(source=source))
        found = await (await connection.execute(statement, arguments)).fetchone()
    assert found is not None, "it counts"
    last = JobId(found["last"]) if found["rows"] == limit else None
    return DecisionPage(found["decided"], found["chosen"] - found["free"], last)
