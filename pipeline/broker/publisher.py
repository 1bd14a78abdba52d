"""Doorbells are rung and replies are sent through Celery's broker. Doorbells carry no words, and replies show none."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from amqp.exceptions import NotFound, ResourceLocked
from kombu import Connection, Queue
from kombu.utils.uuid import uuid
from pydantic import BaseModel

from pipeline.broker.app import TASK_NAME, declared, make_app, on_redis
from pipeline.broker.errors import TROUBLE, UnusableQueue, mapped
from pipeline.broker.quarantine import ASIDE
from schemas.doorbells import Doorbell, queue_name
from schemas.errors import BrokerUnavailable
from schemas.intake import REPLY_TASK

WINDOW = 8
"""Permits that may wait in one queue: enough that no worker idles, few enough that they are never stale."""

_PERMIT_LIFETIME_SECONDS = 3_600
_QUICK_REDIS = {"max_retries": 0, "interval_start": 0, "socket_connect_timeout": 2, "socket_timeout": 5}
_SAFE_RABBITMQ = {
    "confirm_publish": True,
    "max_retries": 0,
    "interval_start": 0,
    "read_timeout": 5,
    "write_timeout": 5,
}
T = TypeVar("T")
HIDDEN = "(hidden)"
"""What events and Flower show in place of arguments that carry words."""


@dataclass(frozen=True, slots=True)
class _Message:
    """A Celery message; `shown` is what events and Flower say of its arguments."""

    queue: str
    task: str
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    shown: str
    lifetime_seconds: int | None = _PERMIT_LIFETIME_SECONDS
    foreign: bool = False


class Bells:
    """Rings doorbells and sends replies from asyncio. Celery publishes with blocking calls, so one thread of its own does."""

    def __init__(self, broker_url: str) -> None:
        self.app = make_app(broker_url)
        self._redis = on_redis(broker_url)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bells")
        self._connection: Connection | None = None
        self._producer: Any = None
        self._there: set[str] = set()

    async def ring(self, doorbells: Sequence[Doorbell]) -> None:
        """Publish.

        Raises:
            BrokerUnavailable: nothing is known to be published. No job is lost by it: recovery rings again.
        """
        messages = [
            # Their arguments may be seen: they are names and numbers.
            _Message(queue_name(bell.model, bell.lane), TASK_NAME, (arguments,), {}, str((arguments,)))
            for bell in doorbells
            for arguments in (bell.model_dump(mode="json", exclude_none=True),)
        ]
        await asyncio.get_running_loop().run_in_executor(self._thread, self._publish, messages)

    async def reply(self, queue: str, reply: BaseModel) -> None:
        """Publish a reply to a caller's queue; its arguments are shown to nobody.

        Raises:
            BrokerUnavailable: it is not known to be published; reply again.
            UnusableQueue: there is no use in replying there.
        """
        message = _Message(queue, REPLY_TASK, (), reply.model_dump(mode="json"), HIDDEN, None, foreign=True)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._publish, [message])

    async def depths(self, queues: Iterable[str]) -> dict[str, int]:
        """Messages waiting in each queue."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._count, list(queues))

    async def aside(self) -> int:
        """Messages that were put aside since nobody could take them, as far as they are kept."""
        return (await self.depths([ASIDE]))[ASIDE]

    async def close(self) -> None:
        """Close the connection."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown()
        self.app.close()

    def _connected(self) -> Connection:
        if self._connection is None:
            # kombu would knock for seconds; a caller waits here, and recovery rings later anyway.
            self._connection = self.app.connection_for_write(
                transport_options=_QUICK_REDIS if self._redis else _SAFE_RABBITMQ
            )
            self._producer = self.app.amqp.Producer(self._connection, auto_declare=False)
            self._ensure(ASIDE)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        self._there.clear()
        if connection is not None:
            with suppress(*TROUBLE):  # it may be broken already
                connection.release()

    def _ensure(self, name: str, *, foreign: bool = False) -> None:
        """On RabbitMQ a queue has to be there, or what is sent to it is gone; on Redis sending makes it.

        A queue of others is looked at each time: its owner may have deleted it.
        """
        if self._redis or name in self._there:
            return
        connection = self._connected()
        queue = Queue(name, no_declare=True) if foreign else declared(name)
        self.app.amqp.queues.add(queue)
        if not foreign or not _is_there(connection, name):
            declared(name, plain=foreign)(connection.default_channel).declare()
        if not foreign:
            self._there.add(name)

    def _publish(self, messages: Sequence[_Message]) -> None:
        if messages and messages[0].foreign:
            self._twice(lambda: self._send(messages))
        else:
            self._ours(lambda: self._send(messages))

    def _ours(self, work: Callable[[], T]) -> T:
        try:
            return self._twice(work)
        except UnusableQueue:
            raise BrokerUnavailable(
                "the broker holds something of another form under the name of a queue of ours; delete it, it is made anew"
            ) from None

    def _twice(self, work: Callable[[], T]) -> T:
        """An idle connection may have been closed by the server meanwhile: one more try on a new one."""
        with mapped():
            was_open = self._connection is not None
            try:
                return work()
            except TROUBLE:
                self._disconnect()
                if not was_open:
                    raise
            try:
                return work()
            except TROUBLE:
                self._disconnect()
                raise

    def _send(self, messages: Sequence[_Message]) -> None:
        self._connected()
        amqp = self.app.amqp
        for message in messages:
            self._ensure(message.queue, foreign=message.foreign)
            # What Celery's send_task does, without what it works out anew for each message: a result object, the route, a
            # careful repr of the arguments. Half the time.
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

    def _count(self, queues: list[str]) -> dict[str, int]:
        return self._ours(lambda: self._lengths(queues))

    def _lengths(self, queues: list[str]) -> dict[str, int]:
        channel: Any = self._connected().default_channel
        if self._redis:
            return {queue: int(channel._size(queue)) for queue in queues}
        lengths = {}
        for queue in queues:
            self._ensure(queue)
            lengths[queue] = int(channel.queue_declare(queue, passive=True).message_count)
        return lengths


def _is_there(connection: Connection, name: str) -> bool:
    """Whether RabbitMQ knows a queue, however its owner declared it."""
    channel: Any
    with connection.channel() as channel:
        try:
            channel.queue_declare(name, passive=True)
        except NotFound:
            return False
        except ResourceLocked:
            return True  # it belongs to one connection alone, and takes messages from all
        return True


__all__ = ["HIDDEN", "WINDOW", "Bells"]
