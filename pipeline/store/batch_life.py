"""The life of a batch: how it stands, pause and resume, cancel, and retry."""

from dataclasses import dataclass
from typing import Any

import orjson
from psycopg.rows import DictRow

from pipeline.store.database import Database
from pipeline.store.replays import current_replay, is_current
from schemas.batches import BatchSettings, BatchStatus, BatchView, RequestCounts
from schemas.errors import BatchNotFound, ErrorCode
from schemas.ids import BatchId, JobId

# The sums of the chunks of each batch; a chunk has at most a thousand rows.
_VIEW = """
SELECT b.*, p.since AS paused_at, p.by_whom AS paused_by, p.reason AS pause_reason, s.*, now() AS now
FROM batches b
LEFT JOIN pauses p ON p.scope = 'batch' AND p.name = b.batch_id::text
CROSS JOIN LATERAL (
    SELECT coalesce(sum(succeeded), 0)::bigint AS succeeded, coalesce(sum(failed), 0)::bigint AS failed,
        coalesce(sum(cancelled), 0)::bigint AS cancelled, coalesce(sum(expired), 0)::bigint AS expired,
        coalesce(sum(cached), 0)::bigint AS cached, coalesce(sum(prompt_tokens), 0)::bigint AS prompt_tokens,
        coalesce(sum(completion_tokens), 0)::bigint AS completion_tokens,
        count(*) FILTER (WHERE state IN ('queued', 'running')) AS open_chunks,
        count(*) FILTER (WHERE state = 'cancelled') AS cancelled_chunks,
        coalesce(sum(greatest(0, rows - succeeded - failed - cancelled - expired)) FILTER (WHERE state = 'running'), 0)::bigint
            AS running,
        min(started_at) AS in_progress_at, max(finished_at) AS finished_at,
        max(last_code) FILTER (WHERE state = 'queued') AS last_code
    FROM chunks WHERE batch_id = b.batch_id
) s
"""


async def view(database: Database, batch_id: BatchId) -> BatchView:
    """Return a batch as it is now.

    Raises:
        BatchNotFound: there is no such batch.
    """
    async with database.connection() as connection:
        row = await (await connection.execute(f"{_VIEW} WHERE b.batch_id = %s", (batch_id,))).fetchone()
    if row is None:
        raise BatchNotFound(f"there is no batch {batch_id}", batch_id=batch_id)
    return _view(row)


async def newest(
    database: Database, *, tenant: str | None = None, before: BatchId | None = None, limit: int = 20
) -> list[BatchView]:
    """Return the newest batches, newest first; `before` is the last one of the page before."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""{_VIEW} WHERE (%(tenant)s::text IS NULL OR b.tenant = %(tenant)s)
                AND (%(before)s::bigint IS NULL OR b.batch_id < %(before)s) ORDER BY b.batch_id DESC LIMIT %(limit)s""",
            {"tenant": tenant, "before": before, "limit": limit},
        )
        return [_view(row) for row in await cursor.fetchall()]


def _view(row: DictRow) -> BatchView:
    jobs, is_open = row["jobs"], row["open_chunks"] > 0
    others = row["succeeded"] + row["failed"] + row["expired"]
    # Rows that were cancelled with their batch have no outcomes: what is left of it is cancelled when no chunk is open.
    cancelled = row["cancelled"] if is_open or not row["cancelled_chunks"] else max(0, jobs - others)
    found = {
        name: row[name] for name in BatchView.model_fields if name in row and name not in {"cancelled", "finished_at"}
    }
    found["last_code"] = ErrorCode(row["last_code"]) if row["last_code"] else None
    status = _status(row, is_open=is_open, unsettled=jobs - others - cancelled)
    options = row["options"]
    return BatchView(
        **found,
        status=status,
        cancelled=cancelled,
        request_counts=RequestCounts(
            total=jobs + row["refused"], completed=row["succeeded"], failed=row["failed"] + row["refused"]
        ),
        settings=BatchSettings(name=row["name"], weight=row["weight"])
        if options is None
        else BatchSettings.model_validate(orjson.loads(options)),
        input_waits_since=None if row["input_complete"] else row["input_seen_at"],
        finished_at=row["failed_at"] or row["finished_at"] or row["created_at"] if status.is_final else None,
        cancelling_at=row["cancelled_at"],
    )


def _status(row: DictRow, *, is_open: bool, unsettled: int) -> BatchStatus:
    expired = row["expires_at"] is not None and row["expires_at"] <= row["now"]
    if row["failed_at"] is not None:
        return BatchStatus.FAILED
    if row["cancelled_at"] is not None:
        return BatchStatus.CANCELLING if is_open else BatchStatus.CANCELLED
    if is_open or unsettled > 0:
        return BatchStatus.IN_PROGRESS
    if expired and (row["expired"] or not row["input_complete"]):
        return BatchStatus.EXPIRED
    if not row["input_complete"]:
        strict = row["options"] is not None and orjson.loads(row["options"]).get("strict")
        return BatchStatus.VALIDATING if strict and not row["input_lines"] else BatchStatus.IN_PROGRESS
    return BatchStatus.COMPLETED


async def failures_by_code(database: Database, batch_id: BatchId) -> dict[str, int]:
    """Count the failed rows of a batch by their codes, the most frequent first."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""SELECT o.code, count(*) AS rows FROM chunks c JOIN outcomes o
                    ON o.job_id >= c.first_job_id AND o.job_id < c.first_job_id + c.rows
                WHERE c.batch_id = %s AND o.state = 'failed' AND {is_current("o")} GROUP BY o.code ORDER BY 2 DESC, 1""",
            (batch_id,),
        )
        return {row["code"]: row["rows"] for row in await cursor.fetchall()}


_CANCEL_CHUNKS = """
WITH open AS MATERIALIZED (
    SELECT first_job_id FROM chunks WHERE batch_id = %(batch)s AND state IN ('queued', 'running')
    ORDER BY first_job_id LIMIT 2000 FOR UPDATE SKIP LOCKED
), cancelled AS (
    UPDATE chunks c SET state = 'cancelled', fence = c.fence + 1, run_id = NULL, lease_expires_at = NULL, finished_at = now()
    FROM open WHERE c.first_job_id = open.first_job_id
)
SELECT (SELECT count(*) FROM open) AS cancelled, (
    SELECT count(*) FROM chunks WHERE batch_id = %(batch)s AND state IN ('queued', 'running')
) AS open
"""


async def cancel(database: Database, batch_id: BatchId) -> None:
    """Begin to cancel a batch: nothing is added to it any more. `cancel_chunks` cancels its rows. Safe to call again.

    Raises:
        BatchNotFound: there is no such batch.
    """
    async with database.connection() as connection:
        cursor = await connection.execute(
            """UPDATE batches SET cancelled_at = coalesce(cancelled_at, now()) WHERE batch_id = %s RETURNING batch_id""",
            (batch_id,),
        )
        if await cursor.fetchone() is None:
            raise BatchNotFound(f"there is no batch {batch_id}", batch_id=batch_id)


async def cancel_chunks(database: Database, batch_id: BatchId) -> int:
    """Cancel the open chunks of a batch, at most 2,000; returns how many are left, those that another process has locked too.

    Their rows have no outcomes: 990,000 of them are cancelled in the time of a thousand chunks.
    """
    async with database.connection() as connection:
        row = await (await connection.execute(_CANCEL_CHUNKS, {"batch": batch_id})).fetchone()
    assert row is not None, "it counts"
    return int(row["open"]) - int(row["cancelled"])


@dataclass(frozen=True, slots=True)
class RetryPage:
    """What one statement of a retry did.

    Attributes:
        rows: that run again.
        busy: chunks with such rows that still run, or that another process has locked.
        last: pass it as `after` for the next page; None after the last page.
    """

    rows: int
    busy: int
    last: JobId | None


# A row runs again if its outcome is decided about, or if it has none because it was cancelled with its batch. The chunk first,
# as settling does. Counters of halves do not describe their own rows, but what is taken from their sum is right.
_RETRY = f"""
WITH page AS MATERIALIZED (
    SELECT first_job_id, rows, state FROM chunks WHERE batch_id = %(batch)s AND first_job_id > %(after)s
    ORDER BY first_job_id LIMIT %(limit)s
), locked AS MATERIALIZED (
    SELECT c.first_job_id, c.rows, c.state FROM chunks c JOIN page USING (first_job_id)
    WHERE c.state IN ('done', 'cancelled', 'queued')
    ORDER BY first_job_id FOR UPDATE OF c SKIP LOCKED
), unsuccessful AS MATERIALIZED (
    SELECT p.first_job_id AS chunk, o.job_id, o.replay, o.tenant, o.state, j.deadline
    FROM page p CROSS JOIN LATERAL (
        SELECT * FROM outcomes o WHERE o.job_id >= p.first_job_id AND o.job_id < p.first_job_id + p.rows
            AND o.state <> 'succeeded' AND {is_current("o")}
    ) o JOIN jobs j ON j.job_id = o.job_id AND j.job_id >= p.first_job_id AND j.job_id < p.first_job_id + p.rows
    WHERE j.deadline IS NULL OR j.deadline > now()
), decided AS (
    INSERT INTO dead_letter_decisions (job_id, replay, tenant, decision)
    SELECT u.job_id, u.replay, u.tenant, 'replayed' FROM unsuccessful u JOIN locked l ON l.first_job_id = u.chunk
    WHERE u.job_id < l.first_job_id + l.rows ON CONFLICT DO NOTHING RETURNING job_id
), again AS (
    SELECT u.chunk, count(*) FILTER (WHERE u.state = 'failed') AS failed,
        count(*) FILTER (WHERE u.state = 'expired') AS expired,
        count(*) FILTER (WHERE u.state = 'cancelled') AS cancelled, count(*) AS rows, min(u.deadline) AS deadline
    FROM unsuccessful u JOIN decided USING (job_id) GROUP BY u.chunk
), bare AS (
    SELECT l.first_job_id AS chunk, l.rows - (
        SELECT count(*) FROM outcomes o WHERE o.job_id >= l.first_job_id AND o.job_id < l.first_job_id + l.rows
            AND o.replay = {current_replay("o.job_id")}
    ) AS rows FROM locked l WHERE l.state = 'cancelled'
), reopened AS (
    UPDATE chunks c SET state = 'queued', fence = c.fence + 1, crashes = 0, rounds = 0, last_code = NULL,
        due_at = CASE WHEN c.due_at = 'infinity' THEN c.due_at ELSE now() END,  -- it waits for its canary
        created_at = CASE WHEN c.state = 'queued' THEN c.created_at ELSE now() END, started_at = NULL, finished_at = NULL,
        failed = c.failed - coalesce(a.failed, 0), expired = c.expired - coalesce(a.expired, 0),
        cancelled = c.cancelled - coalesce(a.cancelled, 0), deadline = least(c.deadline, b.expires_at, a.deadline)
    FROM locked l LEFT JOIN again a ON a.chunk = l.first_job_id
        CROSS JOIN batches b
    WHERE c.first_job_id = l.first_job_id AND b.batch_id = %(batch)s AND (a.rows > 0 OR l.state = 'cancelled')
)
SELECT (
        SELECT coalesce(sum(rows), 0)::bigint FROM (SELECT rows FROM again UNION ALL SELECT greatest(rows, 0) FROM bare) a
    ) AS rows,
    (
        SELECT count(*) FROM page p WHERE p.first_job_id NOT IN (SELECT first_job_id FROM locked)
            AND (p.state = 'cancelled' OR p.first_job_id IN (SELECT chunk FROM unsuccessful))
    ) AS busy,
    (SELECT count(*) FROM page) AS chunks, (SELECT max(first_job_id) FROM page) AS last
"""


async def begin_retry(database: Database, batch_id: BatchId) -> None:
    """Open a batch again: it is not cancelled any more, and its window begins again. `retry_chunks` queues its rows.

    Raises:
        BatchNotFound: there is no such batch.
    """
    async with database.connection() as connection:
        row = await (
            await connection.execute("SELECT options FROM batches WHERE batch_id = %s", (batch_id,))
        ).fetchone()
        if row is None:
            raise BatchNotFound(f"there is no batch {batch_id}", batch_id=batch_id)
        window: Any = orjson.loads(row["options"]).get("window_seconds") if row["options"] else None
        await connection.execute(
            """UPDATE batches SET cancelled_at = NULL, expires_at = now() + make_interval(secs => %(window)s)
               WHERE batch_id = %(batch)s AND failed_at IS NULL""",
            {"batch": batch_id, "window": window},
        )


async def retry_chunks(database: Database, batch_id: BatchId, *, after: JobId | None, limit: int = 64) -> RetryPage:
    """Queue the rows of the next chunks that failed, expired or were cancelled. Safe to call again: each runs once more."""
    arguments = {"batch": batch_id, "after": -1 if after is None else after, "limit": limit}
    async with database.connection() as connection:
        row = await (await connection.execute(_RETRY, arguments)).fetchone()
    assert row is not None, "it counts"
    last = JobId(row["last"]) if row["chunks"] == limit else None
    return RetryPage(row["rows"], row["busy"], last)


# Decided when its file was read and all rows of the canary have outcomes: the rest may run, or the batch is paused first.
_DECIDE_CANARIES = """
WITH ready AS MATERIALIZED (
    SELECT b.batch_id, b.canary_limit, coalesce(sum(c.failed) FILTER (WHERE c.due_at < 'infinity'), 0)::bigint AS failed,
        coalesce(sum(c.rows) FILTER (WHERE c.due_at < 'infinity'), 0)::bigint AS rows
    FROM batches b LEFT JOIN chunks c USING (batch_id)
    WHERE b.canary = 'running' AND b.input_complete AND b.cancelled_at IS NULL
    GROUP BY b.batch_id HAVING coalesce(bool_and(c.state NOT IN ('queued', 'running') OR c.due_at = 'infinity'), true)
), paused AS (
    INSERT INTO pauses (scope, name, by_whom, reason)
    SELECT 'batch', batch_id::text, 'canary', format('%%s of the first %%s rows failed', failed, rows) FROM ready
    WHERE failed > canary_limit * rows ON CONFLICT DO NOTHING
), released AS (
    UPDATE chunks c SET due_at = now() FROM ready
    WHERE c.batch_id = ready.batch_id AND c.due_at = 'infinity' AND c.state = 'queued'
)
UPDATE batches b SET canary = CASE WHEN r.failed > r.canary_limit * r.rows THEN 'failed' ELSE 'passed' END
FROM ready r WHERE b.batch_id = r.batch_id AND b.canary = 'running' RETURNING b.batch_id, b.canary
"""


async def decide_canaries(database: Database) -> dict[BatchId, str]:
    """Let batches go on whose canary has run, or pause them; returns what was decided. Several processes may do so."""
    async with database.connection() as connection:
        return {
            row["batch_id"]: row["canary"] for row in await (await connection.execute(_DECIDE_CANARIES, {})).fetchall()
        }


_ABANDONED = """
WITH abandoned AS (
    UPDATE batches SET expires_at = now() WHERE NOT input_complete AND cancelled_at IS NULL AND failed_at IS NULL
        AND input_seen_at < now() - interval '24 hours' AND (expires_at IS NULL OR expires_at > now()) RETURNING batch_id
), queued AS (
    UPDATE chunks c SET deadline = now() FROM abandoned a WHERE c.batch_id = a.batch_id AND c.state = 'queued'
)
SELECT FROM abandoned
"""


async def expire_abandoned(database: Database) -> None:
    """Expire batches whose submitter added nothing for a day before their file was read to its end."""
    async with database.connection() as connection:
        await connection.execute(_ABANDONED)
