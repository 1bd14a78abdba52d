"""What lost workers left behind goes back, and how much waits. Any number of processes may sweep at once."""

from dataclasses import dataclass

from pipeline.retries import MAX_CRASHES
from pipeline.store.connection import Database
from schemas.messages import Lane

_SWEEP_LOCK = 0x79796334

# Crashes are counted of single rows alone: which of several killed the worker is not known.
# Counters of the settled rows stay with the first half: sums over a batch stay right.
_RETURN_LOST = """
WITH lost AS (
    SELECT first_job_id, rows FROM chunks WHERE state = 'running' AND lease_expires_at < now()
    ORDER BY first_job_id FOR UPDATE SKIP LOCKED
), halved AS (
    INSERT INTO chunks (first_job_id, rows, batch_id, model, lane, priority, deadline, reply_to, series, crashes, rounds,
                        last_code, created_at, started_at)
    SELECT c.first_job_id + c.rows / 2, c.rows - c.rows / 2, c.batch_id, c.model, c.lane, c.priority, c.deadline, c.reply_to,
           c.series, 0, c.rounds, 'worker_lost', c.created_at, c.started_at
    FROM chunks c JOIN lost USING (first_job_id) WHERE c.rows > 1
)
UPDATE chunks c SET state = 'queued', run_id = NULL, lease_expires_at = NULL, fence = c.fence + 1,
    crashes = CASE WHEN c.rows > 1 THEN 0 ELSE c.crashes + 1 END,
    last_code = 'worker_lost', due_at = now(), rows = CASE WHEN c.rows > 1 THEN c.rows / 2 ELSE c.rows END
FROM lost WHERE c.first_job_id = lost.first_job_id
RETURNING c.first_job_id
"""
_FAIL_POISON = """
WITH poison AS (
    SELECT first_job_id, series FROM chunks WHERE state = 'queued' AND rows = 1 AND crashes >= %s FOR UPDATE SKIP LOCKED
), stored AS (
    INSERT INTO outcomes (job_id, series, state, code, message)
    SELECT first_job_id, series, 'failed', 'worker_lost', 'every worker that took this job was lost; see the worker logs'
    FROM poison ON CONFLICT DO NOTHING RETURNING job_id
)
UPDATE chunks c SET state = 'done', finished_at = now(),
    failed = c.failed + (SELECT count(*) FROM stored WHERE stored.job_id = c.first_job_id)
FROM poison WHERE c.first_job_id = poison.first_job_id
RETURNING c.first_job_id
"""
_WAITING = """
SELECT model, lane, count(*) AS chunks FROM chunks WHERE state = 'queued' AND due_at <= now() GROUP BY model, lane
"""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Queued chunks of one model and lane that may be taken now."""

    model: str
    lane: Lane
    chunks: int


async def return_lost(database: Database) -> tuple[int, int]:
    """Put chunks whose lease ran out back into the queue, halved if they have several rows; fail poison rows.

    Returns:
        Chunks returned and rows failed; (0, 0) where another process is sweeping right now.
    """
    async with database.transaction() as connection:
        row = await (
            await connection.execute("SELECT pg_try_advisory_xact_lock(%s) AS mine", (_SWEEP_LOCK,))
        ).fetchone()
        if row is None or not row["mine"]:
            return 0, 0
        returned = await (await connection.execute(_RETURN_LOST)).fetchall()
        poison = await (await connection.execute(_FAIL_POISON, (MAX_CRASHES,))).fetchall()
    return len(returned), len(poison)


async def waiting(database: Database) -> list[Waiting]:
    """How many chunks may be taken now, by model and lane."""
    async with database.connection() as connection:
        rows = await (await connection.execute(_WAITING)).fetchall()
    return [Waiting(row["model"], Lane(row["lane"]), row["chunks"]) for row in rows]


__all__ = ["Waiting", "return_lost", "waiting"]
