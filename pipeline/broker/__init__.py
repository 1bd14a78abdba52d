"""The message broker: doorbells ring through Celery, settled jobs are whispered through Redis. Neither carries words."""

from pipeline.broker.app import TASK_NAME, declared, make_app
from pipeline.broker.aside import ASIDE, put_aside
from pipeline.broker.bells import HIDDEN, WINDOW, Bells
from pipeline.broker.trouble import UnusableQueue
from pipeline.broker.whispers import CANCELLED, CHAT, Whispers

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
