"""Requeue the chunks of lost workers, and count the chunks that may run. Several processes may sweep at once.

A worker is judged by the database clock and by its renewals, each of which moves the end of the
lease. An expired lease proves nothing by itself: the clock may have jumped, or the database may have
been unavailable to everybody. A lease that has expired and that is not renewed between two looks does.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.policies.retries import MAX_CRASHES
from pipeline.store.cancellation import SettledWithoutRun
from pipeline.store.claims import IS_DUE
from pipeline.store.database import Database
from pipeline.store.pauses import may_run
from pipeline.store.queue_depths import QUEUED_GROUPS
from pipeline.store.replays import current_replay, is_current
from pipeline.store.usage import NOTHING_SPENT, count_usage
from schemas.doorbells import Lane
from schemas.ids import JobId

# A lease that ends later than any lease can: the clock was set back.
_EXPIRED_LEASES = """
SELECT first_job_id, fence, lease_expires_at FROM chunks
WHERE state = 'running' AND (lease_expires_at < now() OR lease_expires_at > now() + 2 * %(lease)s::interval)
"""
# Crashes are counted for single rows alone: which row of several killed the worker is not known.
# The counters of settled rows stay with the first half: sums over a batch stay right.
_REQUEUE_LOST = """
WITH lost AS (
    SELECT c.first_job_id, c.rows, c.fence, c.tenant, c.worker FROM chunks c
    JOIN unnest(%(chunks)s::bigint[], %(fences)s::int[], %(ends)s::timestamptz[]) AS seen(first_job_id, fence, lease_end)
      ON seen.first_job_id = c.first_job_id AND seen.fence = c.fence AND seen.lease_end = c.lease_expires_at
    WHERE c.state = 'running' ORDER BY c.first_job_id FOR UPDATE OF c SKIP LOCKED
), halved AS (
    INSERT INTO chunks (first_job_id, rows, batch_id, tenant, model, lane, priority, deadline, reply_to, fence, crashes, rounds,
                        last_code, created_at, started_at, bytes, input_window)
    SELECT c.first_job_id + c.rows / 2, c.rows - c.rows / 2, c.batch_id, c.tenant, c.model, c.lane, c.priority, c.deadline,
           c.reply_to, c.fence + 1, 0, c.rounds, 'worker_lost', c.created_at, c.started_at,
           c.bytes - c.bytes / 2, c.input_window
    FROM chunks c JOIN lost USING (first_job_id) WHERE c.rows > 1
), told AS (
    INSERT INTO lost_runs (first_job_id, fence, rows, tenant, worker)
    SELECT first_job_id, fence, rows, tenant, worker FROM lost ON CONFLICT DO NOTHING
)
UPDATE chunks c SET state = 'queued', run_id = NULL, lease_expires_at = NULL, fence = c.fence + 1,
    crashes = CASE WHEN c.rows > 1 THEN 0 ELSE c.crashes + 1 END,
    last_code = 'worker_lost', due_at = now(), rows = CASE WHEN c.rows > 1 THEN c.rows / 2 ELSE c.rows END,
    bytes = CASE WHEN c.rows > 1 THEN c.bytes / 2 ELSE c.bytes END
FROM lost WHERE c.first_job_id = lost.first_job_id
RETURNING c.first_job_id
"""
_FAIL_POISON = f"""
WITH poison AS (
    SELECT first_job_id FROM chunks WHERE state = 'queued' AND rows = 1 AND crashes >= %s FOR UPDATE SKIP LOCKED
), stored AS (
    INSERT INTO outcomes (job_id, replay, tenant, kind, state, code, message, model)
    SELECT j.job_id, {current_replay("j.job_id")}, j.tenant, j.kind, 'failed', 'crashed_worker',
           'every worker that took this job was lost; their names and times are in its history', c.model
    FROM poison JOIN chunks c USING (first_job_id) JOIN jobs j ON j.job_id = poison.first_job_id
    ON CONFLICT DO NOTHING RETURNING job_id, tenant, kind, state, model
), settled AS (
    SELECT stored.*, c.lane, {NOTHING_SPENT} FROM stored JOIN chunks c ON c.first_job_id = stored.job_id
), used AS ({count_usage("settled", "lane")}
)
UPDATE chunks c SET state = 'done', finished_at = now(),
    failed = c.failed + (SELECT count(*) FROM stored WHERE stored.job_id = c.first_job_id)
FROM poison WHERE c.first_job_id = poison.first_job_id
RETURNING c.first_job_id AS job_id, c.reply_to, (SELECT j.streamed FROM jobs j WHERE j.job_id = c.first_job_id) AS streamed
"""
# No more than `most` are of interest, and what is queued is counted already: the index is read for some of it, by the groups
# of one batch and priority, of which those of paused batches are left out whole.
_RUNNABLE = f"""
WITH RECURSIVE queued AS (
    SELECT model, lane FROM queue_depths GROUP BY model, lane HAVING sum(chunks) > 0
), {QUEUED_GROUPS}
SELECT g.model, g.lane, least(sum(n.chunks), %(most)s)::bigint AS chunks FROM groups g CROSS JOIN LATERAL (
    SELECT count(*) AS chunks FROM (
        SELECT 1 FROM chunks c WHERE c.model = g.model AND c.lane = g.lane AND state = 'queued'
            AND coalesce(batch_id, 0) = g.batch AND priority = g.priority AND {IS_DUE} LIMIT %(most)s
    ) due
) n WHERE {may_run("g.batch")} GROUP BY g.model, g.lane HAVING sum(n.chunks) > 0
"""
# Queued jobs expire even if no worker serves their queue. Lock the chunk first, as settling does.
_DUE = """
SELECT first_job_id, rows, model, lane, reply_to, batch_id FROM chunks WHERE state = 'queued' AND deadline <= now()
ORDER BY deadline LIMIT %(chunks)s FOR UPDATE SKIP LOCKED
"""
_EXPIRE = f"""
WITH due AS MATERIALIZED ({_DUE}), open AS MATERIALIZED (
    SELECT d.first_job_id, d.reply_to, d.model, d.lane, j.job_id, j.tenant, j.kind, j.streamed,
        least(j.deadline, b.expires_at) AS deadline
    FROM due d LEFT JOIN batches b ON b.batch_id = d.batch_id CROSS JOIN LATERAL (
        SELECT * FROM jobs j WHERE j.job_id BETWEEN d.first_job_id AND d.first_job_id + d.rows - 1
          AND NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.job_id = j.job_id
              AND o.job_id BETWEEN d.first_job_id AND d.first_job_id + d.rows - 1 AND {is_current("o")})
    ) j
), stored AS (
    INSERT INTO outcomes (job_id, replay, tenant, kind, state, code, message, model)
    SELECT job_id, {current_replay("open.job_id")}, tenant, kind, 'expired', 'deadline_passed',
           'its deadline passed before an engine was asked', model
    FROM open WHERE deadline <= now() ON CONFLICT DO NOTHING RETURNING job_id, tenant, kind, state, model
), settled AS (
    SELECT stored.*, open.lane, {NOTHING_SPENT} FROM stored JOIN open USING (job_id)
), used AS ({count_usage("settled", "lane")}
), counts AS (
    SELECT d.first_job_id, count(*) FILTER (WHERE o.deadline <= now()) AS expired,
        count(o.job_id) FILTER (WHERE o.deadline IS NULL OR o.deadline > now()) AS left,
        min(o.deadline) FILTER (WHERE o.deadline > now()) AS deadline
    FROM due d LEFT JOIN open o USING (first_job_id) GROUP BY d.first_job_id
), counted AS (
    UPDATE chunks c SET expired = c.expired + n.expired, deadline = n.deadline,
        state = CASE WHEN n.left = 0 THEN 'done' ELSE 'queued' END, finished_at = CASE WHEN n.left = 0 THEN now() END
    FROM counts n WHERE c.first_job_id = n.first_job_id
)
SELECT job_id, reply_to, streamed FROM open WHERE deadline <= now()
"""


@dataclass(frozen=True, slots=True)
class RunnableChunks:
    """The number of queued chunks of one model and lane that may be claimed now."""

    model: str
    lane: Lane
    chunks: int


@dataclass(frozen=True, slots=True)
class LeaseSighting:
    """The end of a lease as recovery saw it; a renewal moves it."""

    first_job_id: JobId
    fence: int
    lease_expires_at: datetime


async def expired_leases(database: Database, lease: timedelta) -> frozenset[LeaseSighting]:
    """Return runs whose lease has expired, or ends later than a lease can."""
    async with database.connection() as connection:
        rows = await (await connection.execute(_EXPIRED_LEASES, {"lease": lease})).fetchall()
    return frozenset(LeaseSighting(JobId(row["first_job_id"]), row["fence"], row["lease_expires_at"]) for row in rows)


async def requeue_lost(database: Database, unrenewed: Collection[LeaseSighting]) -> tuple[int, list[SettledWithoutRun]]:
    """Requeue chunks whose lease is still as it was seen, halved if they have several rows; fail poison rows.

    Several processes may do so at once: a chunk that another one has locked is left to it.

    Returns:
        The number of chunks requeued, and the rows failed.
    """
    async with database.connection() as connection:
        sightings = list(unrenewed)
        arguments = {
            "chunks": [sighting.first_job_id for sighting in sightings],
            "fences": [sighting.fence for sighting in sightings],
            "ends": [sighting.lease_expires_at for sighting in sightings],
        }
        requeued = await (await connection.execute(_REQUEUE_LOST, arguments)).fetchall()
        poison = await (await connection.execute(_FAIL_POISON, (MAX_CRASHES,))).fetchall()
    return len(requeued), [SettledWithoutRun(**row) for row in poison]


async def expire(database: Database, chunks: int = 256) -> list[SettledWithoutRun]:
    """Settle queued jobs whose deadline has passed, of at most this many chunks. Safe to call anywhere."""
    async with database.connection() as connection:
        settled = await (await connection.execute(_EXPIRE, {"chunks": chunks})).fetchall()
    return [SettledWithoutRun(**row) for row in settled]


async def runnable_chunks(database: Database, most: int = 8) -> list[RunnableChunks]:
    """Return how many chunks may be claimed now, by model and lane; `most` is the largest number of interest."""
    async with database.connection() as connection:
        rows = await (await connection.execute(_RUNNABLE, {"most": most})).fetchall()
    return [RunnableChunks(row["model"], Lane(row["lane"]), row["chunks"]) for row in rows]
