"""Cancelling: the outcome is stored first, then everybody who has to do with the job is told."""

import structlog

from pipeline.broker import CANCELLED, Whispers
from pipeline.jobs.notify import tell
from pipeline.store import Database, settlement
from pipeline.streams.writer import StreamWriter
from schemas.errors import BrokerUnavailable, JobNotFound
from schemas.ids import JobId

_log = structlog.get_logger(__name__)


async def cancel(database: Database, whispers: Whispers, streams: StreamWriter, job_id: JobId) -> bool:
    """Settle a job as cancelled, and have the engine stop if it is being answered.

    A worker that has it hangs up on the engine at once; in a shared micro-batch its answer is thrown away. While Redis is
    away, workers find out when they next renew their leases.

    Returns:
        False where it was settled already.

    Raises:
        JobNotFound: there is no such job.
        StoreUnavailable: nothing is known to be written, call again.
    """
    found = await settlement.cancel(database, job_id)
    if found is None:
        raise JobNotFound(f"there is no job {job_id}", job_id=job_id)
    now, job = found
    if now:
        try:
            await whispers.say(CANCELLED, [job_id])
        except BrokerUnavailable as error:
            _log.warning("workers will hear of the cancelled job a moment later", reason=error.message)
        await tell(whispers, streams, [job])
    return now


__all__ = ["cancel"]
