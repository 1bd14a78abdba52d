"""Jobs that come as messages: checked, stored and answered on the queue the caller named."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from pydantic import ValidationError

from pipeline.broker import Bells, UnusableQueue, Whispers
from pipeline.jobs.cancel import cancel
from pipeline.jobs.submit import Submitter
from pipeline.models import Models
from pipeline.observability.logging import fault
from pipeline.policies import retries
from pipeline.policies.chunking import Coalescer
from pipeline.store import Database, queries, reply_outbox
from pipeline.store.reply_outbox import Owed
from pipeline.streams.writer import StreamWriter
from schemas.doorbells import Lane, queue_name
from schemas.errors import (
    BrokerUnavailable,
    ErrorCode,
    InvalidJob,
    JobNotFound,
    PipelineError,
    StoreUnavailable,
    explain,
)
from schemas.ids import JobId
from schemas.intake import (
    AcceptedReply,
    CancelArguments,
    OutcomeReply,
    RefusalError,
    RefusedReply,
    job_key,
    parse_intake,
    reply_queue,
)

_log = structlog.get_logger(__name__)
_SWEEP_SECONDS = 5.0
_PAGE_JOBS = 5_000
_FAILED_QUEUES = 3
_ATTEMPTS_TO_SAY = 8


class Closing(Exception):  # noqa: N818 - nothing failed
    """This process stops; the message belongs back in its queue."""


class Door:
    """Admits jobs and sends their replies.

    A message is acknowledged after its job is stored and `accepted` is said. One that comes twice finds its job by its key.

    Args:
        channel: on which workers whisper the jobs of this door.
    """

    def __init__(
        self,
        models: Models,
        database: Database,
        bells: Bells,
        whispers: Whispers,
        streams: StreamWriter,
        submitter: Submitter,
        channel: str,
    ) -> None:
        self._database = database
        self._bells = bells
        self._whispers = whispers
        self._streams = streams
        self._submitter = submitter
        self._channel = channel
        self._reserved = frozenset(queue_name(entry.name, lane) for entry in models for lane in Lane)
        self._closing = asyncio.Event()
        self._promising: set[JobId] = set()
        self._owe: Coalescer[Owed, None] = Coalescer(self._owe_many)
        self._deliver: Coalescer[JobId, None] = Coalescer(self._deliver_many)

    async def admit(self, arguments: dict[str, Any], message_id: str) -> str:
        """One message; returns `accepted` or `refused` for Flower.

        Raises:
            Closing: the process stops before the job could be stored.
        """
        return await self._or_refused(self._admit, arguments, message_id)

    async def cancel(self, arguments: dict[str, Any], message_id: str) -> str:
        """Cancel a job by its key; returns `cancelled`, `settled before` or `refused` for Flower.

        Its outcome goes to the queue it was submitted with.

        Raises:
            Closing: the process stops before that was done.
        """
        return await self._or_refused(self._cancel, arguments, message_id)

    async def _admit(self, arguments: dict[str, Any]) -> str:
        said = parse_intake(arguments, self._reserved)
        job_id = await self._patiently(lambda: self._submitter.submit(said.job))
        if said.reply_to is not None:
            await self._promise(Owed(job_id, said.reply_to, said.job_key))
        return "accepted"

    async def _cancel(self, arguments: dict[str, Any]) -> str:
        try:
            said = CancelArguments.model_validate(arguments)
        except ValidationError as error:
            raise InvalidJob(f"cancel refused: {explain(error)}") from None
        reply_queue(arguments, self._reserved)
        job_id = await self._patiently(lambda: queries.job_of_key(self._database, said.tenant, said.job_key))
        if job_id is None:
            raise JobNotFound("job_key: there is no job of this key and tenant")
        now = await self._patiently(lambda: cancel(self._database, self._whispers, self._streams, job_id))
        return "cancelled" if now else "settled before"

    async def _or_refused(
        self, work: Callable[[dict[str, Any]], Awaitable[str]], arguments: dict[str, Any], message_id: str
    ) -> str:
        try:
            return await work(arguments)
        except Closing:
            raise
        except PipelineError as error:
            later = error.facts.get("retry_after_seconds")
            await self._refuse(arguments, error.code, error.message, message_id, later)
        except Exception as error:  # noqa: BLE001 - a mistake of ours costs this one message, and its sender is told
            _log.error("a message could not be admitted", message_id=message_id, fault=fault(error))
            await self._refuse(arguments, ErrorCode.OWN_FAULT, f"a mistake in this program: {fault(error)}", message_id)
        return "refused"

    async def _promise(self, owed: Owed) -> None:
        """Say that the job is accepted, after it was written down that its outcome is owed."""
        self._promising.add(owed.job_id)  # its outcome waits until this is said
        try:
            await self._patiently(lambda: self._owe(owed))
            await self._say(owed.queue, AcceptedReply(job_key=owed.job_key, job_id=owed.job_id))
        finally:
            self._promising.discard(owed.job_id)
        await self._patiently(lambda: self._deliver(owed.job_id))  # it may be settled already

    def close(self) -> None:
        """Wait for no database any more: what is not stored goes back to its queue."""
        self._closing.set()

    async def serve(self) -> None:
        """Send replies as jobs are settled, and look from time to time for those whose whisper was lost."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hear())
            group.create_task(self._sweep())

    async def _patiently(self, work: Any) -> Any:
        """Wait out a database that is away: the message is in nobody else's hands meanwhile."""
        attempt = 0
        while True:
            try:
                return await work()
            except (StoreUnavailable, BrokerUnavailable) as error:
                attempt += 1
                _log.warning("the door waits", reason=error.message)
                try:
                    async with asyncio.timeout(retries.delay(attempt).total_seconds()):
                        await self._closing.wait()
                except TimeoutError:
                    continue
                raise Closing from None

    async def _refuse(
        self, arguments: dict[str, Any], code: ErrorCode, message: str, message_id: str, later: float | None = None
    ) -> None:
        try:
            queue = reply_queue(arguments, self._reserved)
        except InvalidJob:
            queue = None
        if queue is None:
            _log.warning("a job was refused, and nobody is to be told", code=code, message_id=message_id)
            return
        try:
            key = job_key(arguments)
        except InvalidJob:
            key = None
        refusal = RefusalError(code=code, message=message, retry_after_seconds=later)
        await self._say(queue, RefusedReply(job_key=key, error=refusal))

    async def _say(self, queue: str, reply: AcceptedReply | RefusedReply) -> None:
        """Tried for a minute or two: a queue that takes nothing must not hold its thread for ever."""
        attempts = 0

        async def once() -> None:
            nonlocal attempts
            attempts += 1
            try:
                await self._reply(queue, reply)
            except BrokerUnavailable:
                if attempts < _ATTEMPTS_TO_SAY:
                    raise
                _log.warning("a reply was dropped: its queue takes nothing", event_kind=reply.event)

        await self._patiently(once)

    async def _reply(self, queue: str, reply: AcceptedReply | RefusedReply | OutcomeReply) -> None:
        try:
            await self._bells.reply(queue, reply)
        except UnusableQueue:
            _log.warning("a reply was dropped: what its caller named is no queue", event_kind=reply.event)

    async def _owe_many(self, owed: list[Owed]) -> list[None]:
        await reply_outbox.owe(self._database, owed)
        return [None] * len(owed)

    async def _deliver_many(self, job_ids: list[JobId]) -> list[None]:
        away: BrokerUnavailable | None = None
        async with reply_outbox.due(self._database, sorted(set(job_ids) - self._promising)) as (owed, sent):
            found = await queries.outcomes_of(self._database, [o.job_id for o in owed]) if owed else {}
            failed: set[str] = set()
            for o in owed:
                # One that was replayed meanwhile is owed on. A queue that takes nothing holds up no other, but a broker that
                # is away is not asked for each of them.
                if not found[o.job_id].settled or o.queue in failed or len(failed) >= _FAILED_QUEUES:
                    continue
                try:
                    await self._reply(
                        o.queue, OutcomeReply(job_key=o.job_key, job_id=o.job_id, outcome=found[o.job_id])
                    )
                except BrokerUnavailable as error:
                    away = error  # what was sent is forgotten first
                    failed.add(o.queue)
                else:
                    sent.append(o)
        if away is not None:
            raise away
        return [None] * len(job_ids)

    async def _hear(self) -> None:
        attempt = 0
        while True:
            try:
                async for job_ids in self._whispers.listen(self._channel, asyncio.Event()):
                    attempt = 0
                    await asyncio.gather(*[self._deliver(job_id) for job_id in job_ids])
            except (BrokerUnavailable, StoreUnavailable) as error:
                _log.warning("replies are late for now", reason=error.message)
            attempt += 1
            await asyncio.sleep(retries.delay(attempt).total_seconds())

    async def _sweep(self) -> None:
        """A page of what is owed each few seconds: whispers get lost, and so do the doors they were meant for."""
        after = JobId(0)
        while True:
            try:
                page = await reply_outbox.owed_after(self._database, after, _PAGE_JOBS)
                await asyncio.gather(*[self._deliver(job_id) for job_id in page])
                after = page[-1] if len(page) == _PAGE_JOBS else JobId(0)
            except (BrokerUnavailable, StoreUnavailable) as error:
                _log.warning("replies are late for now", reason=error.message)
            await asyncio.sleep(_SWEEP_SECONDS)


__all__ = ["Closing", "Door"]
