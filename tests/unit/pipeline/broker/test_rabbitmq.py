"""RabbitMQ as message broker: how queues are declared."""

from typing import Any

from pipeline.broker.quarantine import QUARANTINE
from pipeline.broker.rabbitmq import RabbitMQBroker
from schemas.intake import INTAKE_QUEUE


def arguments_of(name: str) -> dict[str, Any]:
    return RabbitMQBroker().queue(name).queue_arguments or {}


def test_our_queues_are_replicated_and_the_intake_queue_is_plain() -> None:
    bulk, quarantine = arguments_of("m.bulk"), arguments_of(QUARANTINE)
    assert bulk["x-queue-type"] == quarantine["x-queue-type"] == "quorum"
    assert bulk["x-dead-letter-routing-key"] == QUARANTINE
    assert "x-dead-letter-exchange" not in quarantine
    intake = RabbitMQBroker().queue(INTAKE_QUEUE)
    assert not intake.queue_arguments
    assert intake.durable


def test_the_quarantine_is_bounded_and_drops_its_oldest_message() -> None:
    quarantine = arguments_of(QUARANTINE)
    assert (quarantine["x-max-length"], quarantine["x-overflow"]) == (10_000, "drop-head")
