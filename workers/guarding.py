"""Messages that other programs wrote: one that Celery cannot take is put aside and never stops a process.

Celery looks at a message before any task of ours does, on the loop that serves the broker: what goes wrong there ends the
process, and gives the message back to the next one.
"""

from collections.abc import Callable
from typing import Any

import structlog
from celery import Task
from celery.app.base import Celery
from kombu.serialization import dumps

from pipeline.telemetry import fault
from schemas.errors import UndecodableMessage

_log = structlog.get_logger(__name__)


class GuardedTask(Task[Any, Any]):
    """A task whose messages may come from anywhere."""

    def start_strategy(self, app: Celery, consumer: Any, **options: Any) -> Callable[..., Any]:
        """What Celery calls for each message of this task."""
        take: Callable[..., Any] = super().start_strategy(app, consumer, **options)

        def guarded(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **more: Any) -> Any:
            try:
                _without_followers(message)
                return take(message, body, ack, reject, callbacks, **more)
            except Exception as error:  # noqa: BLE001 - the edge to other programs: their message is put aside
                _log.warning(
                    "a message could not be taken; its content is not logged",
                    code=UndecodableMessage.code,
                    task=self.name,
                    fault=fault(error),
                )
                message.reject_log_error(_log, consumer.connection_errors, requeue=False)
                return None

        return guarded


def _without_followers(message: Any) -> None:
    """Callbacks, chains and chords of a message are left out: nothing here calls anybody back, and a broken one would hold a
    thread for ever.

    Raises:
        ValueError: this is no message of Celery's second protocol, or of the first.
    """
    payload = message.payload
    if isinstance(payload, dict):  # the first protocol
        for name in ("callbacks", "errbacks", "chord", "taskset"):
            payload.pop(name, None)
        return
    arguments, named, _ = payload
    if not isinstance(arguments, list) or not isinstance(named, dict):
        raise ValueError("arguments are no arguments")
    if "self" in named:  # Celery would take it for the task itself, and nobody would be told of the unknown field
        named["self_"] = named.pop("self")
    message._decoded_cache = [arguments, named, {}]
    message.body, message.content_type, message.content_encoding = _written(message._decoded_cache)


def _written(payload: list[Any]) -> tuple[str, str, str]:
    content_type, encoding, body = dumps(payload, serializer="json")
    return body, content_type, encoding


__all__ = ["GuardedTask"]
