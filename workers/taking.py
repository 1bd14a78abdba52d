"""Which queues this process takes doorbells from: those of models that can be asked."""

from collections.abc import Callable
from typing import Any

import structlog

from schemas.messages import Lane, queue_name

_log = structlog.get_logger(__name__)


class Taking:
    """Turns Celery's consumption of single queues off and on, from any thread.

    A doorbell that nobody could answer would only wander; in its queue a worker finds it that can. One that comes all the
    same, after Celery connected anew, is dropped by the process: recovery rings again.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._consumer: Any = None
        self._off: set[str] = set()

    def started(self, consumer: Any) -> None:
        """Celery's consumer is there."""
        self._consumer = consumer
        for model in list(self._off):
            self._soon(self._leave, model)

    def turn(self, model: str, *, on: bool) -> None:
        """Take a model's doorbells, or leave them to others."""
        _log.info("takes jobs again" if on else "takes no jobs: no endpoint answers", model=model)
        if on:
            self._off.discard(model)
        else:
            self._off.add(model)
        if self._consumer is not None:
            self._soon(self._take if on else self._leave, model)

    def _soon(self, what: Callable[[str], None], model: str) -> None:
        # Channels belong to the thread of Celery's hub.
        self._consumer.call_soon(what, queue_name(model, self._lane))

    def _leave(self, queue: str) -> None:
        self._consumer.task_consumer.cancel_by_queue(queue)

    def _take(self, queue: str) -> None:
        consumer = self._consumer.task_consumer
        if not consumer.consuming_from(queue):
            consumer.add_queue(self._consumer.app.amqp.queues[queue])
            consumer.consume()


__all__ = ["Taking"]
