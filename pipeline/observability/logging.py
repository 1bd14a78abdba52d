"""Logs: one event a line on stderr, with names and numbers only. The words of a caller are never logged."""

import logging
import sys
import traceback
from pathlib import Path

import structlog


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
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


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
