"""Logs: one event a line on stderr, with names and numbers only. The words of a caller are never logged."""

import logging
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict

_LINES_A_WINDOW = 20
_WINDOW_SECONDS = 10.0


def configure_logging() -> None:
    """Log readable lines at a terminal and JSON lines elsewhere; warnings of libraries are included."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s [%(levelname)s] %(name)s: %(message)s"
    )
    logging.getLogger("celery.worker.consumer.consumer").addFilter(_WithoutBodies())
    renderer = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[
            BoundedRate(),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


class BoundedRate:
    """Drops lines of an event that comes too often, and says with its next line how many: a storm fills no disk."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}  # of each event: when it began, and its lines

    def __call__(self, _: Any, method: str, event: EventDict) -> EventDict:
        """Return the event, or drop it: each level and model has lines of its own."""
        now, name = self._clock(), f"{method} {event.get('event')} {event.get('model')}"
        began, lines = self._windows.get(name, (now, 0))
        if now - began >= _WINDOW_SECONDS:
            if lines > _LINES_A_WINDOW:
                event["lines_left_out"] = lines - _LINES_A_WINDOW
            began, lines = now, 0
        self._windows[name] = began, lines + 1
        if lines >= _LINES_A_WINDOW:
            raise structlog.DropEvent
        return event


class _WithoutBodies(logging.Filter):
    """Removes the content of messages, which Celery logs if it cannot process one: it may be the words of a caller."""

    def filter(self, record: logging.LogRecord) -> bool:
        if "body" in str(record.msg) or "body" in str(record.args):
            record.msg = "a message could not be processed; its content is not logged"
            record.args, record.exc_info = (), None
        return True


def safe_error_summary(error: BaseException) -> str:
    """Return the type and place of an error without its message, which may quote a caller."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
