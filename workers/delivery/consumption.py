"""Which queues this process takes doorbells from: those of models that can be asked."""

from typing import Any

import structlog

from schemas.doorbells import Lane, queue_name

_log = structlog.get_logger(__name__)


class Taking:
    """Turns Celery's consumption of single queues off and on, from any thread.

    A doorbell that nobody could answer would only wander; in its queue a worker finds it that can. One that comes all the
    same, after Celery connected anew, is dropped by the process: recovery rings again.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._consumer: Any = None
        self._off: frozenset[str] = frozenset()

    def started(self, consumer: Any) -> None:
        """Celery's consumer is there."""
        self._consumer = consumer
        for model in self._off:
            self._soon(model)

    def turn(self, model: str, *, on: bool) -> None:
        """Take a model's doorbells, or leave them to others."""
        if on is (model not in self._off):
            return
        _log.info("takes jobs again" if on else "takes no jobs: no endpoint answers", model=model)
        self._off = self._off - {model} if on else self._off | {model}
        self._soon(model)

    def again(self, model: str) -> None:
        """One came all the same: Celery has connected anew."""
        self._soon(model)

    def _soon(self, model: str) -> None:
        if self._consumer is not None:
            # Channels belong to the thread of Celery's hub, which runs what it is given in any order.
            self._consumer.call_soon(self._as_it_is_now, model)

    def _as_it_is_now(self, model: str) -> None:
        queue, consumer = queue_name(model, self._lane), self._consumer.task_consumer
        if model in self._off:
            consumer.cancel_by_queue(queue)
        elif not consumer.consuming_from(queue):
            consumer.add_queue(self._consumer.app.amqp.queues[queue])
            consumer.consume()


__all__ = ["Taking"]
