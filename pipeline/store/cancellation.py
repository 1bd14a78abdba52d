"""Settle a job without a run: its caller cancels it."""

from dataclasses import dataclass

from pipeline.store.database import Database
from pipeline.store.replays import current_replay
from schemas.ids import JobId

_JOB = "SELECT streamed FROM jobs WHERE job_id = %s"
_CHUNK_OF = """
SELECT first_job_id, rows, reply_to FROM chunks WHERE first_job_id <= %s ORDER BY first_job_id DESC LIMIT 1 FOR UPDATE
"""
_CANCEL = f"""
INSERT INTO outcomes (job_id, replay, tenant, kind, state, code, message)
SELECT job_id, {current_replay("%(job)s")}, tenant, kind, 'cancelled', 'cancelled', 'cancelled before it was settled'
FROM jobs WHERE job_id = %(job)s
ON CONFLICT DO NOTHING RETURNING job_id
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
    async with database.transaction() as connection:
        job = await (await connection.execute(_JOB, (job_id,))).fetchone()
        if job is None:
            return None
        while True:
            # Lock the chunk first, as settling does. It may have been halved during the wait: look again.
            chunk = await (await connection.execute(_CHUNK_OF, (job_id,))).fetchone()
            assert chunk is not None, "every job lies in a chunk"
            if job_id < chunk["first_job_id"] + chunk["rows"]:
                break
        stored = await (await connection.execute(_CANCEL, {"job": job_id})).fetchone()
        if stored is not None:
            await connection.execute(
                "UPDATE chunks SET cancelled = cancelled + 1 WHERE first_job_id = %s", (chunk["first_job_id"],)
            )
        return stored is not None, SettledWithoutRun(job_id, chunk["reply_to"], job["streamed"])
