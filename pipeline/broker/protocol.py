"""What differs between message brokers. One module implements it for each broker."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Protocol

from celery.app.amqp import Queues
from kombu import Connection, Queue


class Broker(Protocol):
    """One kind of message broker."""

    @property
    def publish_options(self) -> Mapping[str, Any]:
        """Transport options of the connection that publishes; it must fail fast."""
        ...

    def celery_settings(self, url: str, visibility: timedelta) -> dict[str, Any]:
        """Return settings of the Celery application.

        `visibility` is for tasks that are acknowledged late: the time after which a broker that does
        not see lost connections returns their messages to the queue.
        """
        ...

    def queue(self, name: str) -> Queue:
        """Return the declaration of a queue of ours."""
        ...

    def declare(self, connection: Connection, queues: Queues, name: str, *, foreign: bool) -> None:
        """Make sure that a queue exists before a message is published to it.

        Args:
            connection: of the publisher.
            queues: the queues that the Celery application knows.
            name: of the queue.
            foreign: whether it belongs to a caller, who may have declared it in another form.
        """
        ...

    def length(self, channel: Any, name: str) -> int:
        """Return the number of messages in a queue that exists."""
        ...

    def prepare_consumer(self, connection: Connection) -> None:
        """Create what a consuming process needs beside its queues."""
        ...
