"""Which queues this process consumes: those of models with an endpoint that answers, and as much as it has memory for."""

import threading
from typing import Any

import structlog

from schemas.doorbells import Lane, queue_name

_log = structlog.get_logger(__name__)


class QueueConsumption:
    """Pauses and resumes Celery's consumption of single queues, from any thread.

    A doorbell that this process cannot serve stays in its queue, where another worker can take it. One
    that arrives all the same, after Celery has reconnected, is dropped by the worker: recovery publishes
    it again.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._consumer: Any = None
        self._paused: frozenset[str] = frozenset()

    def start(self, consumer: Any) -> None:
        """Use Celery's consumer, which exists from now on."""
        self._consumer = consumer
        for model in self._paused:
            self.reapply(model)

    def set(self, model: str, *, active: bool) -> None:
        """Consume the doorbells of a model, or leave them to other workers."""
        if active is (model not in self._paused):
            return
        _log.info("consumes jobs again" if active else "consumes no jobs: no endpoint answers", model=model)
        self._paused = self._paused - {model} if active else self._paused | {model}
        self.reapply(model)

    def reapply(self, model: str) -> None:
        """Apply the last setting once more: Celery has reconnected."""
        if self._consumer is not None:
            # Channels belong to the thread of Celery's hub, which runs its calls in any order.
            self._consumer.call_soon(self._apply, model)

    def _apply(self, model: str) -> None:
        _consume(self._consumer, queue_name(model, self._lane), active=model not in self._paused)


class HeldMessages:
    """Messages of a queue that are received and not acknowledged; while they are too large, no more are received.

    Args:
        queue: its name.
        most_bytes: of their bodies; one that is larger is received alone.
    """

    def __init__(self, queue: str, most_bytes: int) -> None:
        self._queue = queue
        self._most = most_bytes
        self._held = 0
        self._full = False
        self._lock = threading.Lock()
        self._consumer: Any = None

    def start(self, consumer: Any) -> None:
        """Use Celery's consumer, which exists from now on."""
        self._consumer = consumer

    def received(self, size: int) -> None:
        """Count a message that was received."""
        self._change(size)
        if self._full and self._consumer is not None:
            self._consumer.call_soon(self._apply)  # once more: Celery may have reconnected, and consumes again

    def ended(self, size: int) -> None:
        """Count a message that was acknowledged or returned to its queue."""
        self._change(-size)

    def _change(self, size: int) -> None:
        with self._lock:
            self._held += size
            full = self._held > (self._most // 2 if self._full else self._most)
            changed, self._full = full is not self._full, full
        if changed and self._consumer is not None:
            self._consumer.call_soon(self._apply)

    def _apply(self) -> None:
        _consume(self._consumer, self._queue, active=not self._full)


def _consume(celery_consumer: Any, queue: str, *, active: bool) -> None:
    """Begin to consume a queue, or stop; call it in the thread of Celery's hub."""
    consumer = celery_consumer.task_consumer
    if not active:
        consumer.cancel_by_queue(queue)
    elif not consumer.consuming_from(queue):
        consumer.add_queue(celery_consumer.app.amqp.queues[queue])
        consumer.consume()
