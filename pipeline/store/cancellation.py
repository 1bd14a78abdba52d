"""Settle a job without a run: its caller cancels it."""

from dataclasses import dataclass

from pipeline.store.database import Database
from pipeline.store.replays import current_replay
from pipeline.store.usage import NOTHING_SPENT, count_usage
from schemas.ids import JobId

# One statement: its lock is never held while this process does something else. Lock the chunk first, as settling does; it
# may have been halved during the wait for it, then the job is not inside any more.
_CANCEL = f"""
WITH chunk AS MATERIALIZED (
    SELECT first_job_id, rows, state, reply_to, model, lane FROM chunks WHERE first_job_id <= %(job)s
    ORDER BY first_job_id DESC LIMIT 1 FOR UPDATE
), stored AS (
    INSERT INTO outcomes (job_id, replay, tenant, kind, state, code, message)
    SELECT job_id, {current_replay("%(job)s")}, tenant, kind, 'cancelled', 'cancelled', 'cancelled before it was settled'
    FROM jobs JOIN chunk ON job_id < first_job_id + rows AND chunk.state <> 'cancelled' WHERE job_id = %(job)s
    ON CONFLICT DO NOTHING RETURNING job_id, tenant, kind, state
), settled AS (
    SELECT stored.*, chunk.model, chunk.lane, {NOTHING_SPENT} FROM stored, chunk
), used AS ({count_usage("settled", "lane")}
), counted AS (
    UPDATE chunks c SET cancelled = c.cancelled + 1 FROM chunk, stored WHERE c.first_job_id = chunk.first_job_id
)
SELECT j.job_id, chunk.reply_to, j.streamed, j.job_id < chunk.first_job_id + chunk.rows AS inside,
       EXISTS (SELECT FROM stored) AS cancelled
FROM jobs j, chunk WHERE j.job_id = %(job)s
"""


@dataclass(frozen=True, slots=True)
class SettledWithoutRun:
    """A job that was settled without a run: cancelled, expired in the queue, or failed as poison.

    Attributes:
        reply_to: the channel of the producer that waits for it.
        streamed: whether a reader may follow its answer.
    """

    job_id: JobId
    reply_to: str | None
    streamed: bool


async def cancel(database: Database, job_id: JobId) -> tuple[bool, SettledWithoutRun] | None:
    """Settle a job as cancelled unless it has an outcome.

    The chunk only counts it. The next claim closes the chunk, because it finds the rows that are
    left: the counters of a chunk that was halved do not describe its own rows.

    Returns:
        Whether this call cancelled the job (False: it was settled before), and the job; None if
        there is no such job.
    """
    async with database.connection() as connection:
        while True:
            found = await (await connection.execute(_CANCEL, {"job": job_id})).fetchone()
            if found is None:
                return None
            if found["inside"]:
                return found["cancelled"], SettledWithoutRun(job_id, found["reply_to"], found["streamed"])
