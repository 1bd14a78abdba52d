"""Messages that other programs wrote: one that Celery cannot take is put aside and never stops a process.

Celery looks at a message before any task of ours does, on the loop that serves the broker: what goes wrong there ends the
process, and gives the message back to the next one.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from celery import Task
from celery.app.base import Celery
from celery.worker.consumer import Consumer
from kombu import Message
from kombu.serialization import dumps

from pipeline.broker import ASIDE, declared, put_aside
from pipeline.observability.logging import fault

_Steps: Any = Consumer.Blueprint


class _Blueprint(_Steps):  # type: ignore[misc]
    """Without the 28 exchanges and queues that Celery makes in RabbitMQ for tasks that are to wait: none of ours does."""

    default_steps: ClassVar[list[str]] = [step for step in _Steps.default_steps if "DelayedDelivery" not in step]


class GuardedConsumer(Consumer):
    """Celery's consumer, but for messages that it would drop and quote in its log."""

    Blueprint = _Blueprint

    def connect(self) -> Any:
        """A connection, with the place where messages are put aside."""
        connection = super().connect()
        if connection.transport.driver_type == "amqp":
            declared(ASIDE)(connection.default_channel).declare()
        return connection

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """It cannot be decoded."""
        put_aside(message, fault(exc))

    def on_unknown_message(self, body: Any, message: Message) -> None:  # noqa: ARG002 - Celery's signature
        """It is no task."""
        put_aside(message, "no task")

    def on_unknown_task(self, body: Any, message: Message, exc: Exception) -> None:  # noqa: ARG002 - Celery's signature
        """It is a task of somebody else."""
        put_aside(message, "unknown task")

    def on_invalid_task(self, body: Any, message: Message, exc: Exception) -> None:  # noqa: ARG002 - Celery's signature
        """It is a task of ours with something impossible in its headers."""
        put_aside(message, fault(exc))


class GuardedTask(Task[Any, Any]):
    """A task whose messages may come from anywhere."""

    def admit(self, arguments: list[Any], named: dict[str, Any]) -> None:
        """Look at a message before Celery takes it.

        Raises:
            ValueError: it is put aside.
        """

    def start_strategy(self, app: Celery, consumer: Any, **options: Any) -> Callable[..., Any]:
        """What Celery calls for each message of this task."""
        take: Callable[..., Any] = super().start_strategy(app, consumer, **options)

        def guarded(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **more: Any) -> Any:
            try:
                self.admit(*_without_followers(message))
                return take(message, body, ack, reject, callbacks, **more)
            except Exception as error:  # noqa: BLE001 - the edge to other programs: their message is put aside
                put_aside(message, fault(error))
                return None

        return guarded


def _without_followers(message: Any) -> tuple[list[Any], dict[str, Any]]:
    """Callbacks, chains and chords of a message are left out: nothing here calls anybody back, and a broken one would hold a
    thread for ever. Returns its arguments.

    Raises:
        ValueError: this is no message of Celery's second protocol, or of the first.
    """
    payload = message.payload
    if isinstance(payload, dict):  # the first protocol
        for name in ("callbacks", "errbacks", "chord", "taskset"):
            payload.pop(name, None)
        return payload.get("args") or [], payload.get("kwargs") or {}
    arguments, named, _ = payload
    if not isinstance(arguments, list) or not isinstance(named, dict):
        raise ValueError("arguments are no arguments")
    if "self" in named:  # Celery would take it for the task itself, and nobody would be told of the unknown field
        named["self_"] = named.pop("self")
    message._decoded_cache = [arguments, named, {}]
    message.body, message.content_type, message.content_encoding = _written(message._decoded_cache)
    return arguments, named


def _written(payload: list[Any]) -> tuple[str, str, str]:
    content_type, encoding, body = dumps(payload, serializer="json")
    return body, content_type, encoding


__all__ = ["GuardedConsumer", "GuardedTask"]
