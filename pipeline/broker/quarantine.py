"""Messages that nobody can take are put aside in a queue of their own: counted, bounded, and never met again.

On RabbitMQ it is the dead-letter queue of our queues as well: there the broker puts aside what was delivered time after time
and never acknowledged. On Redis something that is no message at all would end the process that pops it, below anything that
Celery lets one handle; the transport here looks first.
"""

import binascii
from base64 import b64decode
from typing import Any

import orjson
import redis
import structlog
from kombu import Message, Producer
from kombu.transport import redis as kombu_redis

_log = structlog.get_logger(__name__)
ASIDE = "yyc3.aside"
"""The queue of what was put aside, newest first on Redis."""

KEPT_MESSAGES = 10_000


def put_aside(message: Message, why: str) -> None:
    """Take a message out of its queue for good, and keep it; its content is not logged."""
    _log.warning("a message was put aside; its content is not logged", queue=ASIDE, code="undecodable_message", why=why)
    headers = message.headers if isinstance(message.headers, dict) else {}
    try:
        channel: Any = message.channel
        Producer(channel, auto_declare=False).publish(
            message.body,
            exchange="",
            routing_key=ASIDE,
            content_type=str(message.content_type or "application/octet-stream"),
            content_encoding=str(message.content_encoding or "binary"),
            headers={**headers, "yyc3-why": why},
        )
    except Exception as error:  # noqa: BLE001 - the edge to other programs: whatever is wrong with it, it must not come again
        _log.error("what was put aside could not be kept", kind=type(error).__name__)
    message.ack()  # not a reject: RabbitMQ would put it aside once more


def _is_message(item: bytes | str) -> bool:
    """Whether kombu can make a message of what it popped."""
    try:
        found = orjson.loads(item)
        properties = found["properties"]
        place = properties["delivery_info"]
        if properties.get("body_encoding") == "base64":
            b64decode(found["body"])
        return (
            isinstance(properties["delivery_tag"], str)
            and isinstance(place["exchange"], str)
            and isinstance(place["routing_key"], str)
            and isinstance(found.get("headers", {}), dict)
        )
    except (ValueError, TypeError, LookupError, AttributeError, binascii.Error):
        return False


class _Client(redis.Redis):
    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        reply = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name != "BRPOP" or not reply or _is_message(reply[1]):
            return reply
        _log.warning(
            "something that is no message was put aside; it is not logged", queue=ASIDE, code="undecodable_message"
        )
        with self.pipeline(transaction=False) as pipe:
            pipe.lpush(ASIDE, reply[1])
            pipe.ltrim(ASIDE, 0, KEPT_MESSAGES - 1)
            pipe.execute()
        return None  # as if nothing had come


class _QoS(kombu_redis.QoS):
    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Give back what was not acknowledged, unless the connection is broken: then kombu 5.7 has forgotten its address, and
        asking for it would end the process. What is held comes back by the visibility timeout.
        """
        if self.channel.connection.client is not None:
            super().restore_unacked_once(stderr)


class _Channel(kombu_redis.Channel):
    QoS = _QoS

    def _get_client(self) -> type[redis.Redis]:
        return _Client

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        super()._put(queue, message, **options)
        if queue == ASIDE:
            with self.conn_or_acquire() as client:
                client.ltrim(ASIDE, 0, KEPT_MESSAGES - 1)


class RedisTransport(kombu_redis.Transport):
    """kombu's, but for what it does with things that are no messages, and when its connection broke."""

    Channel = _Channel


__all__ = ["ASIDE", "KEPT_MESSAGES", "RedisTransport", "put_aside"]
