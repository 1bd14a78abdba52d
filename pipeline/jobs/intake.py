"""Jobs that arrive as messages: checked, stored, and answered on the queue that the caller named."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from pydantic import ValidationError

from pipeline.broker import Notifier, Publisher
from pipeline.concurrency.backoff import Stopped, retry_while_unavailable
from pipeline.jobs.cancel import cancel
from pipeline.jobs.replies import Replies
from pipeline.jobs.submit import Submitter
from pipeline.models import Models
from pipeline.observability.logging import safe_error_summary
from pipeline.store import Database, queries
from pipeline.store.reply_outbox import PendingReply
from pipeline.streams import StreamWriter
from schemas.doorbells import Lane, queue_name
from schemas.errors import ErrorCode, InvalidJob, JobNotFound, PipelineError
from schemas.intake import (
    CancelArguments,
    RefusalError,
    RefusedReply,
    job_key,
    parse_intake,
    reply_queue,
)
from schemas.problems import first_problem

_log = structlog.get_logger(__name__)
T = TypeVar("T")


class ShuttingDown(Exception):  # noqa: N818 - nothing failed
    """This process stops; the message goes back to its queue."""


class Intake:
    """Accepts jobs and sends their replies.

    A message is acknowledged after its job is stored and `accepted` was sent. A message that is
    delivered twice finds its job by its key.

    Args:
        models: whose queue names are reserved.
        database: where jobs are stored.
        publisher: publishes replies.
        notifier: notifies of settled jobs.
        streams: ends the streams of cancelled jobs.
        submitter: stores jobs.
        channel: on which workers notify of the jobs of this intake.
    """

    def __init__(
        self,
        models: Models,
        database: Database,
        publisher: Publisher,
        notifier: Notifier,
        streams: StreamWriter,
        submitter: Submitter,
        channel: str,
    ) -> None:
        self._database = database
        self._notifier = notifier
        self._streams = streams
        self._submitter = submitter
        self._models = models
        self._shutting_down = asyncio.Event()
        self._replies = Replies(database, publisher, notifier, channel, self._shutting_down)

    async def accept(self, arguments: dict[str, Any], message_id: str) -> str:
        """Store the job of one message; returns `accepted` or `refused` for Flower.

        Raises:
            ShuttingDown: the process stopped before the job was stored.
        """
        return await self._refuse_on_error(self._accept, arguments, message_id)

    async def cancel(self, arguments: dict[str, Any], message_id: str) -> str:
        """Cancel a job by its key; returns `cancelled`, `settled before` or `refused` for Flower.

        Its outcome goes to the queue that it was submitted with.

        Raises:
            ShuttingDown: the process stopped before the job was cancelled.
        """
        return await self._refuse_on_error(self._cancel, arguments, message_id)

    def close(self) -> None:
        """Stop waiting for unavailable services: a job that is not stored goes back to its queue."""
        self._shutting_down.set()

    @property
    def _reserved(self) -> frozenset[str]:
        return frozenset(queue_name(entry.name, lane) for entry in self._models for lane in Lane)

    async def serve(self) -> None:
        """Send replies until cancelled."""
        await self._replies.serve()

    async def _accept(self, arguments: dict[str, Any]) -> str:
        request = parse_intake(arguments, self._reserved)
        job_id = await self._retry(lambda: self._submitter.submit(request.job))
        if request.reply_to is not None:
            reply = PendingReply(job_id, request.reply_to, request.job.tenant, request.job_key)
            await self._replies.record_and_accept(reply)
        return "accepted"

    async def _cancel(self, arguments: dict[str, Any]) -> str:
        try:
            request = CancelArguments.model_validate(arguments)
        except ValidationError as error:
            raise InvalidJob(f"cancel refused: {first_problem(error)}") from None
        reply_queue(arguments, self._reserved)
        job_id = await self._retry(lambda: queries.job_of_key(self._database, request.tenant, request.job_key))
        if job_id is None:
            raise JobNotFound("job_key: there is no job with this key and tenant")
        cancelled = await self._retry(lambda: cancel(self._database, self._notifier, self._streams, job_id))
        return "cancelled" if cancelled else "settled before"

    async def _refuse_on_error(
        self, work: Callable[[dict[str, Any]], Awaitable[str]], arguments: dict[str, Any], message_id: str
    ) -> str:
        try:
            return await work(arguments)
        except Stopped:
            raise ShuttingDown from None
        except PipelineError as error:
            later = error.facts.get("retry_after_seconds")
            refusal = RefusalError(code=error.code, message=error.message, retry_after_seconds=later)
        except Exception as error:  # noqa: BLE001 - a bug of ours costs this one message, and its sender gets a refusal
            summary = safe_error_summary(error)
            _log.error("a message could not be accepted", message_id=message_id, fault=summary)
            refusal = RefusalError(code=ErrorCode.INTERNAL_ERROR, message=f"an internal error: {summary}")
        await self._refuse(arguments, refusal, message_id)
        return "refused"

    async def _refuse(self, arguments: dict[str, Any], refusal: RefusalError, message_id: str) -> None:
        queue = _valid(lambda: reply_queue(arguments, self._reserved))
        if queue is None:
            _log.warning(
                "a job was refused, and its message names no reply queue", code=refusal.code, message_id=message_id
            )
            return
        try:
            await self._replies.send(queue, RefusedReply(job_key=_valid(lambda: job_key(arguments)), error=refusal))
        except Stopped:
            raise ShuttingDown from None

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """Wait while a service is unavailable: no other process has the message meanwhile."""
        return await retry_while_unavailable(call, "the intake waits for a service", self._shutting_down)


def _valid(read: Callable[[], str | None]) -> str | None:
    try:
        return read()
    except InvalidJob:
        return None
