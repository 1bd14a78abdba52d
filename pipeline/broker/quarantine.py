"""The quarantine: a queue for messages that cannot be processed, counted and bounded.

On RabbitMQ it is the dead-letter queue of our queues as well: there the broker itself moves messages
that were delivered again and again and never acknowledged.
"""

from typing import Any

import structlog
from kombu import Message, Producer

from schemas.errors import ErrorCode

_log = structlog.get_logger(__name__)
QUARANTINE = "yyc3.quarantine"
"""The queue; on Redis its newest message is first."""

KEPT_MESSAGES = 10_000


def quarantine(message: Message, reason: str) -> None:
    """Move a message out of its queue into the quarantine; its content is not logged."""
    _log.warning(
        "a message was quarantined; its content is not logged",
        queue=QUARANTINE,
        code=ErrorCode.UNDECODABLE_MESSAGE,
        reason=reason,
    )
    headers = message.headers if isinstance(message.headers, dict) else {}
    try:
        channel: Any = message.channel
        Producer(channel, auto_declare=False).publish(
            message.body,
            exchange="",
            routing_key=QUARANTINE,
            content_type=str(message.content_type or "application/octet-stream"),
            content_encoding=str(message.content_encoding or "binary"),
            headers={**headers, "yyc3-reason": reason},
        )
    except Exception as error:  # noqa: BLE001 - the edge to other programs: whatever is wrong with it, it must not come again
        _log.error("a quarantined message could not be kept", kind=type(error).__name__)
    message.ack()  # not a reject: RabbitMQ would quarantine it once more
