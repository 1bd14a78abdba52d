"""Which queues a worker consumes, in whatever order Celery's hub runs the calls that it is given."""

from collections.abc import Callable
from itertools import permutations
from types import SimpleNamespace

import pytest

from schemas.doorbells import Lane
from workers.delivery.consumption import QueueConsumption


class Consumer:
    """What QueueConsumption uses of Celery's consumer. kombu's hub keeps its calls in a set, without an order."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[[str], None], str]] = []
        self.consumed = {"m.bulk", "n.bulk"}
        self.app = SimpleNamespace(amqp=SimpleNamespace(queues={"m.bulk": "m.bulk", "n.bulk": "n.bulk"}))
        self.task_consumer = SimpleNamespace(
            cancel_by_queue=self.consumed.discard,
            consuming_from=lambda queue: queue in self.consumed,
            add_queue=self.consumed.add,
            consume=lambda: None,
        )

    def call_soon(self, function: Callable[[str], None], model: str) -> None:
        self.calls.append((function, model))

    def run(self, index: int) -> None:
        function, model = self.calls[index]
        function(model)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_last_setting_counts_in_whatever_order_calls_run(order: tuple[int, ...]) -> None:
    consumption, consumer = QueueConsumption(Lane.BULK), Consumer()
    consumption.start(consumer)
    for active in (False, True, False):
        consumption.set("m", active=active)
    for index in order:
        consumer.run(index)
    assert consumer.consumed == {"n.bulk"}
    consumption.set("m", active=True)
    consumer.run(-1)
    assert consumer.consumed == {"m.bulk", "n.bulk"}


def test_a_setting_from_before_celery_started_is_applied_at_the_start() -> None:
    consumption, consumer = QueueConsumption(Lane.BULK), Consumer()
    consumption.set("m", active=False)
    consumption.start(consumer)
    for index in range(len(consumer.calls)):
        consumer.run(index)
    assert consumer.consumed == {"n.bulk"}
    assert len(consumer.calls) == 1
    consumption.set("m", active=False)
    assert len(consumer.calls) == 1, "nothing changed"


def test_a_paused_queue_stays_paused_after_celery_reconnected() -> None:
    consumption, consumer = QueueConsumption(Lane.BULK), Consumer()
    consumption.start(consumer)
    consumption.set("m", active=False)
    consumer.run(-1)
    consumer.consumed.add("m.bulk")  # Celery consumes all queues of a new connection
    consumption.reapply("m")
    consumer.run(-1)
    assert consumer.consumed == {"n.bulk"}


def test_a_consumed_queue_is_not_added_again_after_celery_reconnected() -> None:
    consumption, consumer = QueueConsumption(Lane.BULK), Consumer()
    consumption.start(consumer)
    added: list[str] = []
    consumer.task_consumer.add_queue = added.append
    consumption.reapply("n")
    consumer.run(-1)
    assert added == []
    assert consumer.consumed == {"m.bulk", "n.bulk"}
