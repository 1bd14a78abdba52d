"""Celery and Redis: doorbells ring through one, settled jobs are whispered through the other. Neither carries words."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import orjson
import structlog
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError
from kombu.utils.uuid import uuid
from pydantic import BaseModel
from redis import asyncio as aioredis
from redis.exceptions import RedisError, ResponseError

from schemas.errors import BrokerUnavailable
from schemas.ids import JobId
from schemas.intake import REPLY_TASK
from schemas.messages import Doorbell, queue_name

_log = structlog.get_logger(__name__)
_NOT_OURS = "something that is not ours was said on a channel of ours"
TASK_NAME = "yyc3.chunk"
WINDOW = 8
"""Permits that may wait in one queue: enough that no worker idles, few enough that they are never stale."""

_PERMIT_LIFETIME_SECONDS = 3_600
HIDDEN = "(hidden)"
"""What events and Flower show in place of arguments that carry words."""


def make_app(redis_url: str, *, visibility: timedelta = timedelta(hours=1)) -> Celery:
    """The Celery application: JSON only, early acknowledgement, no results in Redis.

    A message is acknowledged when its task starts: leases in Postgres recover what a lost worker held, and a second
    recovery in the broker would run it twice. `visibility` is for tasks that are acknowledged late: after it, what a lost
    process held goes back to its queue.
    """
    app = Celery("yyc3", broker=redis_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        event_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_default_queue="yyc3.unused",
        task_create_missing_queues=True,
        worker_disable_prefetch=True,  # what a worker cannot start now stays in the queue, for others
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=5,
        broker_transport_options={
            # Keys of our own: those of other systems on this Redis are not ours to give back, nor ours theirs.
            "unacked_key": "yyc3.unacked",
            "unacked_index_key": "yyc3.unacked_index",
            "unacked_mutex_key": "yyc3.unacked_mutex",
            "visibility_timeout": int(visibility.total_seconds()),
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,  # look each 5 s
            "socket_connect_timeout": 5,
            "socket_timeout": 30,
        },
        event_queue_expires=60,
        control_queue_expires=60,
        timezone="UTC",
    )
    return app


class UnusableQueue(Exception):  # noqa: N818 - it tells of a queue, nothing of ours failed
    """What bears this name in Redis is no queue; it will not be one the next time either."""


@contextmanager
def _mapped() -> Any:
    try:
        yield
    except ResponseError as error:
        if "WRONGTYPE" in str(error):
            raise UnusableQueue from None
        raise BrokerUnavailable("Redis refuses a command; is it full, or a replica?") from error
    except (OperationalError, RedisError, ConnectionError, TimeoutError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BrokerUnavailable(f"Redis cannot be reached: {reason}") from error


@dataclass(frozen=True, slots=True)
class _Message:
    """A Celery message; `shown` is what events and Flower say of its arguments."""

    queue: str
    task: str
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    shown: str
    lifetime_seconds: int | None = _PERMIT_LIFETIME_SECONDS


class Bells:
    """Rings doorbells and sends replies from asyncio. Celery publishes with blocking calls, so one thread of its own does."""

    def __init__(self, redis_url: str) -> None:
        self.app = make_app(redis_url)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bells")
        self._connection: Connection | None = None
        self._producer: Any = None

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
        message = _Message(queue, REPLY_TASK, (), reply.model_dump(mode="json"), HIDDEN, None)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._publish, [message])

    async def depths(self, queues: Iterable[str]) -> dict[str, int]:
        """Messages waiting in each queue."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._count, list(queues))

    async def close(self) -> None:
        """Close the connection."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown()
        self.app.close()

    def _connected(self) -> Connection:
        if self._connection is None:
            # kombu would knock for seconds; a caller waits here, and recovery rings later anyway.
            self._connection = self.app.connection_for_write(transport_options={"max_retries": 0, "interval_start": 0})
            self._producer = self.app.amqp.Producer(self._connection, auto_declare=False)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.release()
            self._connection = self._producer = None

    def _publish(self, messages: Sequence[_Message]) -> None:
        with _mapped():
            try:
                self._send(messages)
            except (OperationalError, RedisError, ConnectionError, TimeoutError):
                # An idle connection may have been closed by the server meanwhile: one more try on a new one.
                self._disconnect()
                self._send(messages)

    def _send(self, messages: Sequence[_Message]) -> None:
        self._connected()
        amqp = self.app.amqp
        for message in messages:
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
        with _mapped():
            try:
                return self._lengths(queues)
            except (OperationalError, RedisError, ConnectionError, TimeoutError):
                self._disconnect()
                return self._lengths(queues)

    def _lengths(self, queues: list[str]) -> dict[str, int]:
        channel: Any = self._connected().default_channel
        return {queue: int(channel._size(queue)) for queue in queues}


CANCELLED = "yyc3.cancelled"
"""The channel on which every worker hears of cancelled jobs."""

CHAT = "yyc3.chat"
"""The channel on which bulk workers hear of models that somebody waits for."""


class Whispers:
    """Says which jobs are settled, or were cancelled, by id. Losing one costs a listener at most its next look."""

    def __init__(self, redis_url: str) -> None:
        self._redis: aioredis.Redis = aioredis.from_url(redis_url, socket_connect_timeout=5, health_check_interval=30)

    async def say(self, channel: str, job_ids: Sequence[JobId]) -> None:
        """Tell those who listen to a channel: a producer to its own, workers to CANCELLED."""
        with _mapped():
            await self._redis.publish(channel, orjson.dumps(job_ids))

    async def listen(self, channel: str, ready: asyncio.Event) -> AsyncIterator[list[JobId]]:
        """Ids as they are said; `ready` is set when nothing said from now on is missed."""
        async for said in self._heard(channel, ready):
            try:
                yield [JobId(int(i)) for i in said]
            except (TypeError, ValueError):
                _log.warning(_NOT_OURS, channel=channel)

    async def announce_chat(self, model: str) -> None:
        """Somebody waits for an answer of this model."""
        with _mapped():
            await self._redis.publish(CHAT, orjson.dumps([model]))

    async def hear_of_chat(self) -> AsyncIterator[str]:
        """Models that somebody waits for, as they are announced."""
        async for said in self._heard(CHAT, asyncio.Event()):
            if isinstance(said, list) and said and isinstance(said[0], str):
                yield said[0]
            else:
                _log.warning(_NOT_OURS, channel=CHAT)

    async def _heard(self, channel: str, ready: asyncio.Event) -> AsyncIterator[Any]:
        with _mapped():
            async with self._redis.pubsub() as subscription:
                await subscription.subscribe(channel)
                async for message in subscription.listen():
                    if message["type"] == "subscribe":
                        ready.set()
                    elif message["type"] == "message":
                        try:
                            yield orjson.loads(message["data"])
                        except orjson.JSONDecodeError:
                            _log.warning(_NOT_OURS, channel=channel)

    async def ping(self) -> None:
        """Raises BrokerUnavailable where Redis does not answer."""
        with _mapped():
            await self._redis.ping()

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


__all__ = ["CANCELLED", "CHAT", "HIDDEN", "TASK_NAME", "WINDOW", "Bells", "UnusableQueue", "Whispers", "make_app"]
