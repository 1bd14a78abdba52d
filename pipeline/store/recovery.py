"""What lost workers left behind goes back, and how much waits. Any number of processes may sweep at once.

Whether a worker is lost is judged by the database clock and by its beat, which is the end of its lease: every renewal moves it.
A lease that is over proves nothing by itself (the clock may have jumped, the database may have been away from everybody); a
beat that is over and does not move between two looks does.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.policies.retries import MAX_CRASHES
from pipeline.store.claims import IS_DUE
from pipeline.store.database import Database
from pipeline.store.replays import series_of, stands
from pipeline.store.settlement import SettledOutside
from schemas.doorbells import Lane
from schemas.ids import JobId

_SWEEP_LOCK = 0x79796334

# A lease that ends later than any could: the clock was set back.
_OVERDUE = """
SELECT first_job_id, fence, lease_expires_at FROM chunks
WHERE state = 'running' AND (lease_expires_at < now() OR lease_expires_at > now() + 2 * %(lease)s::interval)
"""
# Crashes are counted of single rows alone: which of several killed the worker is not known.
# Counters of the settled rows stay with the first half: sums over a batch stay right.
_RETURN_LOST = """
WITH lost AS (
    SELECT c.first_job_id, c.rows FROM chunks c
    JOIN unnest(%(chunks)s::bigint[], %(fences)s::int[], %(beats)s::timestamptz[]) AS silent(first_job_id, fence, beat)
      ON silent.first_job_id = c.first_job_id AND silent.fence = c.fence AND silent.beat = c.lease_expires_at
    WHERE c.state = 'running' ORDER BY c.first_job_id FOR UPDATE OF c SKIP LOCKED
), halved AS (
    INSERT INTO chunks (first_job_id, rows, batch_id, tenant, model, lane, priority, deadline, reply_to, fence, crashes, rounds,
                        last_code, created_at, started_at)
    SELECT c.first_job_id + c.rows / 2, c.rows - c.rows / 2, c.batch_id, c.tenant, c.model, c.lane, c.priority, c.deadline,
           c.reply_to, c.fence + 1, 0, c.rounds, 'worker_lost', c.created_at, c.started_at
    FROM chunks c JOIN lost USING (first_job_id) WHERE c.rows > 1
)
UPDATE chunks c SET state = 'queued', run_id = NULL, lease_expires_at = NULL, fence = c.fence + 1,
    crashes = CASE WHEN c.rows > 1 THEN 0 ELSE c.crashes + 1 END,
    last_code = 'worker_lost', due_at = now(), rows = CASE WHEN c.rows > 1 THEN c.rows / 2 ELSE c.rows END
FROM lost WHERE c.first_job_id = lost.first_job_id
RETURNING c.first_job_id
"""
_FAIL_POISON = f"""
WITH poison AS (
    SELECT first_job_id FROM chunks WHERE state = 'queued' AND rows = 1 AND crashes >= %s FOR UPDATE SKIP LOCKED
), stored AS (
    INSERT INTO outcomes (job_id, series, state, code, message, model)
    SELECT first_job_id, {series_of("first_job_id")}, 'failed', 'crashed_worker',
           'every worker that took this job was lost; see the worker logs', c.model
    FROM poison JOIN chunks c USING (first_job_id) ON CONFLICT DO NOTHING RETURNING job_id
)
UPDATE chunks c SET state = 'done', finished_at = now(),
    failed = c.failed + (SELECT count(*) FROM stored WHERE stored.job_id = c.first_job_id)
FROM poison WHERE c.first_job_id = poison.first_job_id
RETURNING c.first_job_id AS job_id, c.reply_to,
    (SELECT coalesce((j.request ->> 'stream')::bool, false) FROM jobs j WHERE j.job_id = c.first_job_id) AS streamed
"""
_WAITING = f"""
SELECT model, lane, count(*) AS chunks FROM chunks WHERE state = 'queued' AND {IS_DUE} GROUP BY model, lane
"""


# What waits while nobody serves it expires all the same. The chunk first, as settling does.
_DUE = """
SELECT first_job_id FROM chunks WHERE state = 'queued' AND deadline <= now()
ORDER BY first_job_id LIMIT 256 FOR UPDATE SKIP LOCKED
"""
_EXPIRE = f"""
WITH stored AS (
    INSERT INTO outcomes (job_id, series, state, code, message, model)
    SELECT j.job_id, {series_of("j.job_id")}, 'expired', 'deadline_passed',
           'its deadline had passed before an engine was asked', c.model
    FROM chunks c JOIN jobs j ON j.job_id BETWEEN c.first_job_id AND c.first_job_id + c.rows - 1
    WHERE c.first_job_id = ANY(%(due)s) AND j.deadline <= now() ON CONFLICT DO NOTHING RETURNING job_id
)
SELECT s.job_id, c.first_job_id, c.reply_to, coalesce((j.request ->> 'stream')::bool, false) AS streamed
FROM stored s JOIN jobs j USING (job_id)
JOIN chunks c ON c.first_job_id = ANY(%(due)s) AND s.job_id BETWEEN c.first_job_id AND c.first_job_id + c.rows - 1
"""
_COUNT_EXPIRED = f"""
UPDATE chunks c SET
    expired = c.expired + (SELECT count(*) FROM unnest(%(chunks)s::bigint[]) AS e WHERE e = c.first_job_id),
    deadline = l.deadline, state = CASE WHEN l.jobs = 0 THEN 'done' ELSE 'queued' END,
    finished_at = CASE WHEN l.jobs = 0 THEN now() END
FROM unnest(%(due)s::bigint[]) AS d(first_job_id), LATERAL (
    SELECT count(*) AS jobs, min(j.deadline) AS deadline FROM chunks mine
    JOIN jobs j ON j.job_id BETWEEN mine.first_job_id AND mine.first_job_id + mine.rows - 1
    WHERE mine.first_job_id = d.first_job_id
      AND NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.job_id = j.job_id AND {stands("o")})
) l
WHERE c.first_job_id = d.first_job_id
"""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Queued chunks of one model and lane that may be taken now."""

    model: str
    lane: Lane
    chunks: int


@dataclass(frozen=True, slots=True)
class Beat:
    """The last sign of life of whoever runs a chunk."""

    first_job_id: JobId
    fence: int
    lease_expires_at: datetime


async def overdue(database: Database, lease: timedelta) -> frozenset[Beat]:
    """Runs whose lease is over, or ends later than it can."""
    async with database.connection() as connection:
        rows = await (await connection.execute(_OVERDUE, {"lease": lease})).fetchall()
    return frozenset(Beat(JobId(row["first_job_id"]), row["fence"], row["lease_expires_at"]) for row in rows)


async def return_lost(database: Database, silent: Collection[Beat]) -> tuple[int, list[SettledOutside]]:
    """Put these chunks back into the queue where their beat has not moved, halved if they have several rows; fail poison rows.

    Returns:
        Chunks returned, and rows failed; nothing where another process is at it right now.
    """
    async with database.transaction() as connection:
        row = await (
            await connection.execute("SELECT pg_try_advisory_xact_lock(%s) AS mine", (_SWEEP_LOCK,))
        ).fetchone()
        if row is None or not row["mine"]:
            return 0, []
        beats = list(silent)
        arguments = {
            "chunks": [beat.first_job_id for beat in beats],
            "fences": [beat.fence for beat in beats],
            "beats": [beat.lease_expires_at for beat in beats],
        }
        returned = await (await connection.execute(_RETURN_LOST, arguments)).fetchall()
        poison = await (await connection.execute(_FAIL_POISON, (MAX_CRASHES,))).fetchall()
    return len(returned), [SettledOutside(**row) for row in poison]


async def expire(database: Database) -> list[SettledOutside]:
    """Settle queued jobs whose deadline has come, some hundred chunks at a time. Safe to run anywhere."""
    async with database.transaction() as connection:
        due = [row["first_job_id"] for row in await (await connection.execute(_DUE)).fetchall()]
        if not due:
            return []
        settled = await (await connection.execute(_EXPIRE, {"due": due})).fetchall()
        chunks = [row.pop("first_job_id") for row in settled]
        await connection.execute(_COUNT_EXPIRED, {"due": due, "chunks": chunks})
    return [SettledOutside(**row) for row in settled]


async def waiting(database: Database) -> list[Waiting]:
    """How many chunks may be taken now, by model and lane."""
    async with database.connection() as connection:
        rows = await (await connection.execute(_WAITING)).fetchall()
    return [Waiting(row["model"], Lane(row["lane"]), row["chunks"]) for row in rows]


__all__ = ["Beat", "Waiting", "expire", "overdue", "return_lost", "waiting"]
