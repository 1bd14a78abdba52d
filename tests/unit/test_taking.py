"""Which queues a worker takes from, whatever the order in which Celery's hub does what it is told."""

from collections.abc import Callable
from itertools import permutations
from types import SimpleNamespace

import pytest

from schemas.doorbells import Lane
from workers.delivery.consumption import QueueConsumption


class Consumer:
    """What QueueConsumption uses of Celery's consumer. kombu's hub keeps what it is to call in a set: no order."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[[str], None], str]] = []
        self.taken = {"m.bulk", "n.bulk"}
        self.app = SimpleNamespace(amqp=SimpleNamespace(queues={"m.bulk": "m.bulk", "n.bulk": "n.bulk"}))
        self.task_consumer = SimpleNamespace(
            cancel_by_queue=self.taken.discard,
            consuming_from=lambda queue: queue in self.taken,
            add_queue=self.taken.add,
            consume=lambda: None,
        )

    def call_soon(self, what: Callable[[str], None], model: str) -> None:
        self.calls.append((what, model))


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_last_word_counts_in_whatever_order_it_is_carried_out(order: tuple[int, ...]) -> None:
    consumption, consumer = QueueConsumption(Lane.BULK), Consumer()
    consumption.started(consumer)
    for on in (False, True, False):
        consumption.turn("m", on=on)
    for i in order:
        what, model = consumer.calls[i]
        what(model)
    assert consumer.taken == {"n.bulk"}
    consumption.turn("m", on=True)
    what, model = consumer.calls[-1]
    what(model)
    assert consumer.taken == {"m.bulk", "n.bulk"}


def test_what_was_said_before_celery_started_is_carried_out_then() -> None:
    consumption, consumer = QueueConsumption(Lane.BULK), Consumer()
    consumption.turn("m", on=False)
    consumption.started(consumer)
    for what, model in consumer.calls:
        what(model)
    assert consumer.taken == {"n.bulk"}
    assert len(consumer.calls) == 1
    consumption.turn("m", on=False)
    assert len(consumer.calls) == 1, "nothing changed"
