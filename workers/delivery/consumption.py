"""Which queues this process consumes: those of models with an endpoint that answers."""

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
        queue, consumer = queue_name(model, self._lane), self._consumer.task_consumer
        if model in self._paused:
            consumer.cancel_by_queue(queue)
        elif not consumer.consuming_from(queue):
            consumer.add_queue(self._consumer.app.amqp.queues[queue])
            consumer.consume()
