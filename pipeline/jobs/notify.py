"""Telling those who wait that jobs were settled where no run says it: cancelled, expired in the queue, or given up."""

from collections.abc import Sequence

import structlog

from pipeline.broker import Whispers
from pipeline.store.settlement import SettledOutside
from pipeline.streams.writer import StreamWriter
from schemas.errors import BrokerUnavailable
from schemas.ids import JobId

_log = structlog.get_logger(__name__)


async def tell(whispers: Whispers, streams: StreamWriter, settled: Sequence[SettledOutside]) -> None:
    """End their streams, and whisper to their producers. Whoever cannot be told finds out by looking."""
    streams.end(job.job_id for job in settled if job.streamed)
    channels: dict[str, list[JobId]] = {}
    for job in settled:
        if job.reply_to is not None:
            channels.setdefault(job.reply_to, []).append(job.job_id)
    try:
        for channel, job_ids in channels.items():
            await whispers.say(channel, job_ids)
    except BrokerUnavailable as error:
        _log.warning("waiting callers will find their results a moment later", reason=error.message)


__all__ = ["tell"]
