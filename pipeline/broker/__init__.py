"""The message broker: doorbells ring through Celery, settled jobs are whispered through Redis. Neither carries words."""

from pipeline.broker.app import TASK_NAME, declared, make_app
from pipeline.broker.errors import UnusableQueue
from pipeline.broker.notifications import CANCELLED, CHAT, Whispers
from pipeline.broker.publisher import HIDDEN, WINDOW, Bells
from pipeline.broker.quarantine import ASIDE, put_aside

__all__ = [
    "ASIDE",
    "CANCELLED",
    "CHAT",
    "HIDDEN",
    "TASK_NAME",
    "WINDOW",
    "Bells",
    "UnusableQueue",
    "Whispers",
    "declared",
    "make_app",
    "put_aside",
]
