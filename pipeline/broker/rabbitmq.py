"""RabbitMQ as message broker: durable, replicated queues whose dead-letter queue is the quarantine."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from amqp.exceptions import NotFound, ResourceLocked
from celery.app.amqp import Queues
from kombu import Connection, Exchange, Queue

from pipeline.broker.quarantine import KEPT_MESSAGES, QUARANTINE
from schemas.intake import INTAKE_QUEUE

_DEFAULT_EXCHANGE = Exchange("")
_BOUNDED = {"x-queue-type": "quorum", "x-max-length": KEPT_MESSAGES, "x-overflow": "drop-head"}
_DEAD_LETTERED = {
    "x-queue-type": "quorum",
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": QUARANTINE,
    "x-delivery-limit": 10,
}


class RabbitMQBroker:
    """RabbitMQ. A message to a queue that does not exist is lost, so queues are declared first."""

    publish_options: Mapping[str, Any] = {
        "confirm_publish": True,
        "max_retries": 0,
        "interval_start": 0,
        "read_timeout": 5,
        "write_timeout": 5,
    }

    def celery_settings(self, url: str, visibility: timedelta) -> dict[str, Any]:  # noqa: ARG002 - the broker sees lost connections
        """Return settings; RabbitMQ returns the messages of a lost connection at once."""
        return {"worker_prefetch_multiplier": 1, "broker_heartbeat": 20}

    def queue(self, name: str) -> Queue:
        """Return the declaration of a queue of ours; the intake queue is plain, as every Celery program declares it."""
        if name == INTAKE_QUEUE:
            return _plain(name)
        arguments = _BOUNDED if name == QUARANTINE else _DEAD_LETTERED
        return Queue(name, _DEFAULT_EXCHANGE, routing_key=name, queue_arguments=dict(arguments))

    def declare(self, connection: Connection, queues: Queues, name: str, *, foreign: bool) -> None:
        """Declare a queue; a caller's queue is declared plain, and only if it does not exist."""
        queues.add(Queue(name, no_declare=True) if foreign else self.queue(name))
        if not foreign:
            self.queue(name)(connection.default_channel).declare()
        elif not _exists(connection, name):
            _plain(name)(connection.default_channel).declare()

    def length(self, channel: Any, name: str) -> int:
        """Return the number of messages that are ready."""
        return int(channel.queue_declare(name, passive=True).message_count)

    def prepare_consumer(self, connection: Connection) -> None:
        """Declare the quarantine, to which consumers publish."""
        self.queue(QUARANTINE)(connection.default_channel).declare()


def _plain(name: str) -> Queue:
    return Queue(name, _DEFAULT_EXCHANGE, routing_key=name)


def _exists(connection: Connection, name: str) -> bool:
    """Whether a queue exists, in whatever form its owner declared it."""
    channel: Any
    with connection.channel() as channel:
        try:
            channel.queue_declare(name, passive=True)
        except NotFound:
            return False
        except ResourceLocked:
            return True  # exclusive to one connection, but it accepts messages from all
        return True
