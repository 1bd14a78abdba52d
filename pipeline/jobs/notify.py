"""Notify callers of settled jobs. A caller that cannot be notified finds the outcome when it looks the next time."""

from collections.abc import Sequence

import structlog

from pipeline.broker import Notifier
from pipeline.store.cancellation import SettledWithoutRun
from pipeline.streams import StreamWriter
from schemas.errors import BrokerUnavailable
from schemas.ids import JobId

_log = structlog.get_logger(__name__)


async def notify_callers(notifier: Notifier, channel: str | None, job_ids: Sequence[JobId]) -> bool:
    """Notify one producer of settled jobs, if there are any; False where Redis is unavailable."""
    if channel is None or not job_ids:
        return True
    try:
        await notifier.notify(channel, job_ids)
    except BrokerUnavailable as error:
        _log.warning("waiting callers find their results a moment later", reason=error.message)
        return False
    return True


async def notify_settled_without_run(
    notifier: Notifier, streams: StreamWriter, settled: Sequence[SettledWithoutRun]
) -> None:
    """End the streams of jobs that were cancelled, expired or failed as poison, and notify their producers."""
    streams.end(job.job_id for job in settled if job.streamed)
    channels: dict[str, list[JobId]] = {}
    for job in settled:
        if job.reply_to is not None:
            channels.setdefault(job.reply_to, []).append(job.job_id)
    for channel, job_ids in channels.items():
        if not await notify_callers(notifier, channel, job_ids):
            return  # the other channels go through the same Redis
