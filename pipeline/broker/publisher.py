"""Publish doorbells and replies through Celery's broker. Doorbells have no words, and replies show none in events."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from kombu import Connection
from kombu.utils.uuid import uuid
from pydantic import BaseModel

from pipeline.broker.app import TASK_NAME, make_app
from pipeline.broker.errors import CONNECTION_ERRORS, UnusableQueue, translate_errors
from pipeline.broker.quarantine import QUARANTINE
from pipeline.broker.registry import broker_for
from schemas.doorbells import Doorbell, queue_name
from schemas.errors import BrokerUnavailable
from schemas.intake import REPLY_TASK

MAX_OPEN_DOORBELLS = 8
"""Open doorbells that may wait in one queue: enough that no worker idles, few enough that they are never stale."""

REDACTED = "(redacted)"
"""What events and Flower show in place of arguments with the words of a caller."""

_DOORBELL_LIFETIME_SECONDS = 3_600
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _TaskMessage:
    """A Celery message; `shown` is what events and Flower show of its arguments."""

    queue: str
    task: str
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    shown: str
    lifetime_seconds: int | None = _DOORBELL_LIFETIME_SECONDS
    foreign: bool = False


def _doorbell_message(doorbell: Doorbell) -> _TaskMessage:
    arguments = (doorbell.model_dump(mode="json", exclude_none=True),)
    # Its arguments may be shown: they are names and numbers.
    return _TaskMessage(queue_name(doorbell.model, doorbell.lane), TASK_NAME, arguments, {}, str(arguments))


class Publisher:
    """Publishes from asyncio. Celery publishes with blocking calls, so one thread of its own does."""

    def __init__(self, broker_url: str) -> None:
        self.app = make_app(broker_url)
        self._broker = broker_for(broker_url)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publisher")
        self._connection: Connection | None = None
        self._producer: Any = None
        self._declared: set[str] = set()
        self._queue = ""  # the one in use, for an error that has to name it

    async def publish(self, doorbells: Sequence[Doorbell]) -> None:
        """Publish doorbells.

        Raises:
            BrokerUnavailable: nothing is known to be published. No job is lost: recovery publishes again.
        """
        messages = [_doorbell_message(doorbell) for doorbell in doorbells]
        await self._run(lambda: self._name_unusable(lambda: self._send(messages)))

    async def reply(self, queue: str, reply: BaseModel) -> None:
        """Publish a reply to a caller's queue; events do not show its arguments.

        Raises:
            BrokerUnavailable: it is not known to be published; reply again.
            UnusableQueue: no reply can be sent there.
        """
        message = _TaskMessage(queue, REPLY_TASK, (), reply.model_dump(mode="json"), REDACTED, None, foreign=True)
        await self._run(lambda: self._retry_once(lambda: self._send([message])))

    async def depths(self, queues: Iterable[str]) -> dict[str, int]:
        """Return the messages in each queue.

        Raises:
            BrokerUnavailable: the broker does not answer, or one of the queues has other settings.
        """
        names = list(queues)
        return await self._run(lambda: self._name_unusable(lambda: self._lengths(names)))

    async def quarantined(self) -> int:
        """Return the number of messages in the quarantine, at most those that are kept."""
        return (await self.depths([QUARANTINE]))[QUARANTINE]

    async def close(self) -> None:
        """Close the connection."""
        await self._run(self._disconnect)
        self._thread.shutdown()
        self.app.close()

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _connected(self) -> Connection:
        if self._connection is None:
            # kombu would retry for seconds; a caller waits here, and recovery publishes later anyway.
            self._connection = self.app.connection_for_write(transport_options=dict(self._broker.publish_options))
            self._producer = self.app.amqp.Producer(self._connection, auto_declare=False)
            self._declare(QUARANTINE)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        self._declared.clear()
        if connection is not None:
            with suppress(*CONNECTION_ERRORS):  # it may be broken already
                connection.release()

    def _declare(self, name: str, *, foreign: bool = False) -> None:
        """Declare a queue once; a caller's queue each time, because its owner may have deleted it."""
        self._queue = name
        if name in self._declared:
            return
        self._broker.declare(self._connected(), self.app.amqp.queues, name, foreign=foreign)
        if not foreign:
            self._declared.add(name)

    def _name_unusable(self, work: Callable[[], T]) -> T:
        try:
            return self._retry_once(work)
        except UnusableQueue:
            raise BrokerUnavailable(
                f"queue {self._queue} exists on the broker with other settings; delete it and it will be declared again"
            ) from None

    def _retry_once(self, work: Callable[[], T]) -> T:
        """Repeat on a new connection if the server has closed the idle one."""
        with translate_errors():
            was_open = self._connection is not None
            try:
                return work()
            except CONNECTION_ERRORS:
                self._disconnect()
                if not was_open:
                    raise
            try:
                return work()
            except CONNECTION_ERRORS:
                self._disconnect()
                raise

    def _send(self, messages: Sequence[_TaskMessage]) -> None:
        self._connected()
        amqp = self.app.amqp
        for message in messages:
            self._declare(message.queue, foreign=message.foreign)
            # What Celery's send_task does, without what it computes again for each message: a result object, the route,
            # a careful repr of the arguments. Half the time.
            task = amqp.create_task_message(
                uuid(),
                message.task,
                args=message.arguments,
                kwargs=message.named,
                expires=message.lifetime_seconds,
                argsrepr=message.shown,
                kwargsrepr=message.shown if message.named else "{}",
            )
            amqp.send_task_message(self._producer, message.task, task, queue=message.queue, retry=False)

    def _lengths(self, names: Sequence[str]) -> dict[str, int]:
        channel = self._connected().default_channel
        lengths = {}
        for name in names:
            self._declare(name)
            lengths[name] = self._broker.length(channel, name)
        return lengths
