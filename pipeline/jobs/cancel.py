"""Cancel a job: store the outcome first, then notify everyone concerned."""

import asyncio

import structlog

from pipeline.broker import CANCELLED, Notifier
from pipeline.jobs.notify import notify_settled_without_run
from pipeline.store import Database, cancellation
from pipeline.streams import StreamWriter
from schemas.errors import BrokerUnavailable, JobNotFound
from schemas.ids import JobId

_log = structlog.get_logger(__name__)


async def cancel(database: Database, notifier: Notifier, streams: StreamWriter, job_id: JobId) -> bool:
    """Settle a job as cancelled, and abort its engine request if it is in flight.

    The worker that runs it aborts the engine request at once; in a shared micro-batch its answer is
    discarded. If Redis is unavailable, workers find it when they next renew their leases.

    Returns:
        False if the job was settled before.

    Raises:
        JobNotFound: there is no such job.
        StoreUnavailable: nothing is known to be written, call again.
    """
    found = await cancellation.cancel(database, job_id)
    if found is None:
        raise JobNotFound(f"there is no job {job_id}", job_id=job_id)
    cancelled_now, job = found
    if cancelled_now:
        async with asyncio.TaskGroup() as group:
            group.create_task(_notify_workers(notifier, job_id))
            group.create_task(notify_settled_without_run(notifier, streams, [job]))
    return cancelled_now


async def _notify_workers(notifier: Notifier, job_id: JobId) -> None:
    try:
        await notifier.notify(CANCELLED, [job_id])
    except BrokerUnavailable as error:
        _log.warning("workers find the cancelled job a moment later", reason=error.message)
