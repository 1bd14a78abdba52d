"""Replies to callers of the intake queue: sent when their jobs are settled, and not before `accepted`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import structlog

from pipeline.broker import Notifier, Publisher, UnusableQueue
from pipeline.concurrency.backoff import keep_subscribed, retry_while_unavailable
from pipeline.concurrency.coalescer import Coalescer
from pipeline.store import Database, queries, reply_outbox
from pipeline.store.reply_outbox import PendingReply
from schemas.errors import BrokerUnavailable, StoreUnavailable
from schemas.ids import JobId
from schemas.intake import AcceptedReply, OutcomeReply, RefusedReply

_log = structlog.get_logger(__name__)
_SWEEP_SECONDS = 5.0
_PAGE_JOBS = 5_000
_FAILED_QUEUES = 3
_MAX_ATTEMPTS = 8
_LATE = "replies are delayed"


class Replies:
    """Sends replies, and keeps those that are pending in the outbox.

    Args:
        database: where the outbox is.
        publisher: publishes replies.
        notifier: notifies of settled jobs.
        channel: of the jobs that the intake submits.
        stop: set when the process shuts down.
    """

    def __init__(
        self, database: Database, publisher: Publisher, notifier: Notifier, channel: str, stop: asyncio.Event
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._notifier = notifier
        self._channel = channel
        self._stop = stop
        self._unaccepted: set[JobId] = set()
        self._enqueue: Coalescer[PendingReply, None] = Coalescer(self._enqueue_many)
        self._deliver: Coalescer[JobId, None] = Coalescer(self._deliver_many)

    async def record_and_accept(self, reply: PendingReply) -> None:
        """Store that a queue expects an outcome, send `accepted` to it, and the outcome if the job is settled.

        Raises:
            Stopped: the process shuts down and the database is unavailable.
        """
        with self._held_back(reply.job_id):
            await self._retry(lambda: self._enqueue(reply))
            await self.send(reply.queue, AcceptedReply(job_key=reply.job_key, job_id=reply.job_id))
        await self._retry(lambda: self._deliver(reply.job_id))

    async def send(self, queue: str, reply: AcceptedReply | RefusedReply) -> None:
        """Send a reply; after a minute or two it is dropped, because a full queue must not block a thread.

        Raises:
            Stopped: the process shuts down and the broker is unavailable.
        """
        attempts = 0

        async def once() -> None:
            nonlocal attempts
            attempts += 1
            try:
                await self._publish(queue, reply)
            except BrokerUnavailable:
                if attempts < _MAX_ATTEMPTS:
                    raise
                _log.warning("a reply was dropped: its queue accepts nothing", event_kind=reply.event)

        await self._retry(once)

    async def serve(self) -> None:
        """Send replies as jobs are settled, and look now and then for those whose notification was lost."""
        async with asyncio.TaskGroup() as group:
            group.create_task(keep_subscribed(self._subscribe, self._deliver_all, _LATE))
            group.create_task(self._sweep())

    @contextmanager
    def _held_back(self, job_id: JobId) -> Iterator[None]:
        """Hold back the outcome of a job until `accepted` was sent."""
        self._unaccepted.add(job_id)
        try:
            yield
        finally:
            self._unaccepted.discard(job_id)

    async def _retry(self, call: Callable[[], Awaitable[None]]) -> None:
        await retry_while_unavailable(call, "the intake waits for a service", self._stop)

    async def _publish(self, queue: str, reply: AcceptedReply | RefusedReply | OutcomeReply) -> None:
        try:
            await self._publisher.reply(queue, reply)
        except UnusableQueue:
            _log.warning("a reply was dropped: its name is not a usable queue", event_kind=reply.event)

    async def _enqueue_many(self, replies: list[PendingReply]) -> list[None]:
        await reply_outbox.enqueue(self._database, replies)
        return [None] * len(replies)

    async def _deliver_many(self, job_ids: list[JobId]) -> list[None]:
        unavailable: BrokerUnavailable | None = None
        async with reply_outbox.claim_due(self._database, sorted(set(job_ids) - self._unaccepted)) as (due, sent):
            outcomes = await queries.outcomes_of(self._database, [reply.job_id for reply in due]) if due else {}
            failed: set[str] = set()
            for reply in due:
                outcome = outcomes[reply.job_id]
                # A job that was replayed meanwhile stays pending. A full queue blocks no other, but an unavailable broker is
                # not called for each of them.
                if not outcome.settled or reply.queue in failed or len(failed) >= _FAILED_QUEUES:
                    continue
                try:
                    await self._publish(
                        reply.queue, OutcomeReply(job_key=reply.job_key, job_id=reply.job_id, outcome=outcome)
                    )
                except BrokerUnavailable as error:
                    unavailable = error  # raised after the sent ones are deleted
                    failed.add(reply.queue)
                else:
                    sent.append(reply)
        if unavailable is not None:
            raise unavailable
        return [None] * len(job_ids)

    def _subscribe(self) -> AsyncIterator[list[JobId]]:
        return self._notifier.subscribe(self._channel, asyncio.Event())

    async def _deliver_all(self, job_ids: list[JobId]) -> None:
        await asyncio.gather(*[self._deliver(job_id) for job_id in job_ids])

    async def _sweep(self) -> None:
        """Deliver a page of pending replies every few seconds: notifications and the intakes they are for may be lost."""
        after = JobId(0)
        while True:
            try:
                page = await reply_outbox.pending_after(self._database, after, _PAGE_JOBS)
                await self._deliver_all(page)
                after = page[-1] if len(page) == _PAGE_JOBS else JobId(0)
            except (BrokerUnavailable, StoreUnavailable) as error:
                _log.warning(_LATE, reason=error.message)
            await asyncio.sleep(_SWEEP_SECONDS)
