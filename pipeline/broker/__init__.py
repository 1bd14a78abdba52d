"""Messages between processes: doorbells and replies through Celery's broker, notifications through Redis.

app            the Celery application
registry       brokers by URL scheme
protocol       what differs between brokers
redis          Redis and Valkey
rabbitmq       RabbitMQ
publisher      publish doorbells and replies, count messages
notifications  settled and cancelled jobs, interactive demand
quarantine     messages that cannot be processed
errors         foreign errors translated
"""

from pipeline.broker.app import TASK_NAME, make_app
from pipeline.broker.errors import UnusableQueue
from pipeline.broker.notifications import CANCELLED, INTERACTIVE_DEMAND, Notifier
from pipeline.broker.publisher import MAX_OPEN_DOORBELLS, REDACTED, Publisher
from pipeline.broker.quarantine import QUARANTINE, quarantine
from pipeline.broker.registry import broker_of

__all__ = [
    "CANCELLED",
    "INTERACTIVE_DEMAND",
    "MAX_OPEN_DOORBELLS",
    "QUARANTINE",
    "REDACTED",
    "TASK_NAME",
    "Notifier",
    "Publisher",
    "UnusableQueue",
    "broker_of",
    "make_app",
    "quarantine",
]
