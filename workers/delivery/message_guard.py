"""Messages of other programs: one that cannot be processed is quarantined and never stops a process.

Celery inspects a message before any task runs, on the loop that serves the broker: an exception there
ends the process, and returns the message to the next one.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from celery import Task
from celery.app.base import Celery
from celery.worker.consumer import Consumer
from kombu import Message
from kombu.serialization import dumps

from pipeline.broker import broker_of, quarantine
from pipeline.observability.logging import safe_error_summary
from workers.delivery.consumption import HeldMessages

_Steps: Any = Consumer.Blueprint


class _Blueprint(_Steps):  # type: ignore[misc]
    """Celery's steps without delayed tasks, for which it creates 28 exchanges and queues in RabbitMQ."""

    default_steps: ClassVar[list[str]] = [step for step in _Steps.default_steps if "DelayedDelivery" not in step]


class QuarantineConsumer(Consumer):
    """Celery's consumer, which quarantines messages that Celery would drop and quote in its log."""

    Blueprint = _Blueprint

    def connect(self) -> Any:
        """Return a connection on which messages can be quarantined."""
        connection = super().connect()
        broker_of(self.app).prepare_consumer(connection)
        return connection

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Quarantine a message that cannot be decoded."""
        quarantine(message, safe_error_summary(exc))

    def on_unknown_message(self, body: Any, message: Message) -> None:  # noqa: ARG002 - Celery's signature
        """Quarantine a message that is not a task."""
        quarantine(message, "not a task")

    def on_unknown_task(self, body: Any, message: Message, exc: Exception) -> None:  # noqa: ARG002 - Celery's signature
        """Quarantine a task of another program."""
        quarantine(message, "unknown task")

    def on_invalid_task(self, body: Any, message: Message, exc: Exception) -> None:  # noqa: ARG002 - Celery's signature
        """Quarantine a task with invalid headers."""
        quarantine(message, safe_error_summary(exc))


class ValidatedTask(Task[Any, Any]):
    """A task whose messages may come from any program; `held` counts those that are not acknowledged."""

    held: ClassVar[HeldMessages | None] = None

    def validate(self, arguments: list[Any], named: dict[str, Any]) -> None:
        """Check the arguments of a message before Celery processes it.

        Raises:
            ValueError: the message is quarantined.
        """

    def on_schedule(self, named: dict[str, Any], eta: Any, expires: Any) -> None:
        """Hear when a message should run, and until when; Celery does not: it would hold one and drop the other in silence."""

    def start_strategy(self, app: Celery, consumer: Any, **options: Any) -> Callable[..., Any]:
        """Return what Celery calls for each message of this task."""
        process: Callable[..., Any] = super().start_strategy(app, consumer, **options)

        def guarded(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **more: Any) -> Any:
            try:
                self.validate(*_strip_callbacks(message, self.on_schedule))
            except Exception as error:  # noqa: BLE001 - the edge to other programs: their message is quarantined
                quarantine(message, safe_error_summary(error))
                return None
            counted = _Counted(self.held, len(message.body))
            try:
                return process(message, body, counted.then(ack), counted.then(reject), callbacks, **more)
            except Exception as error:  # noqa: BLE001 - as above
                quarantine(message, safe_error_summary(error))
                counted.end()
                return None

        return guarded


class _Counted:
    """One message, counted until it is acknowledged or rejected, which Celery does at the end of every one."""

    def __init__(self, held: HeldMessages | None, size: int) -> None:
        self._held, self._size = held, size
        if held is not None:
            held.received(size)

    def then(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that calls another one, and ends the count."""

        def called(*arguments: Any, **named: Any) -> Any:
            try:
                return call(*arguments, **named)
            finally:
                self.end()

        return called

    def end(self) -> None:
        """Count it no more; does nothing the second time."""
        held, self._held = self._held, None
        if held is not None:
            held.ended(self._size)


def _strip_callbacks(
    message: Any, on_schedule: Callable[[dict[str, Any], Any, Any], None]
) -> tuple[list[Any], dict[str, Any]]:
    """Remove callbacks, chains, chords and times from a message, and return its arguments.

    No task here calls back, and a broken callback would block a thread without end.

    Raises:
        ValueError: it is a message of neither Celery protocol.
    """
    payload = message.payload
    if isinstance(payload, dict):  # protocol 1
        for name in ("callbacks", "errbacks", "chord", "taskset"):
            payload.pop(name, None)
        arguments, named = payload.get("args") or [], payload.get("kwargs") or {}
        payload["kwargs"] = named
        _strip_schedule(payload, named, on_schedule)
        return arguments, named
    arguments, named, _ = payload
    if not isinstance(arguments, list) or not isinstance(named, dict):
        raise ValueError("arguments of an unknown form")
    if isinstance(message.headers, dict):
        _strip_schedule(message.headers, named, on_schedule)
    if "self" in named:  # Celery would pass it as the task itself, and the unknown field would not be refused
        named["self_"] = named.pop("self")
    message._decoded_cache = [arguments, named, {}]
    message.content_type, message.content_encoding, message.body = dumps(message._decoded_cache, serializer="json")
    return arguments, named


def _strip_schedule(
    fields: dict[str, Any], named: dict[str, Any], on_schedule: Callable[[dict[str, Any], Any, Any], None]
) -> None:
    eta, expires = fields.get("eta"), fields.get("expires")
    if eta is not None or expires is not None:
        fields |= {"eta": None, "expires": None}
        on_schedule(named, eta, expires)
