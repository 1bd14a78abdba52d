"""Logs: one line an event on stderr, names and numbers only. A caller's words are never logged."""

import logging
import sys
import traceback
from pathlib import Path

import structlog


def configure_logging() -> None:
    """Readable lines at a terminal, JSON lines elsewhere; libraries' own warnings come along."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s [%(levelname)s] %(name)s: %(message)s"
    )
    logging.getLogger("celery.worker.consumer.consumer").addFilter(_WithoutBodies())
    people = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


class _WithoutBodies(logging.Filter):
    """Celery logs the whole content of a message it cannot take. That may be a caller's words."""

    def filter(self, record: logging.LogRecord) -> bool:
        if "body" in str(record.msg) or "body" in str(record.args):
            record.msg, record.args, record.exc_info = (
                "a message could not be taken; its content is not logged",
                (),
                None,
            )
        return True


def fault(error: BaseException) -> str:
    """What kind of mistake and where, without its message: that may quote a caller."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


__all__ = ["configure_logging", "fault"]
