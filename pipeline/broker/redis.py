"""Redis and Valkey as message broker.

An item that is not a kombu message crashes the consumer before any Celery hook runs, so this
transport validates items as it pops them.
"""

import binascii
import json
import ssl
from base64 import b64decode
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson
import redis
import structlog
from celery.app.amqp import Queues
from kombu import Connection, Exchange, Queue
from kombu.transport import redis as kombu_redis

from pipeline.broker.quarantine import KEPT_MESSAGES, QUARANTINE
from pipeline.redis_url import parse_redis_url

_log = structlog.get_logger(__name__)
_OF_TCP = {"host", "port", "socket_keepalive", "socket_keepalive_options", "socket_connect_timeout"}
_VERIFICATION = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class RedisBroker:
    """Redis or Valkey. Publishing to a queue creates it."""

    publish_options: Mapping[str, Any] = {
        "max_retries": 0,
        "interval_start": 0,
        "socket_connect_timeout": 1,
        "socket_timeout": 2,
    }

    def celery_settings(self, url: str, visibility: timedelta) -> dict[str, Any]:
        """Return settings; a rediss URL adds TLS. The path of a socket is one of the options, see _Channel."""
        address = parse_redis_url(url)
        settings: dict[str, Any] = {
            "broker_url": address.broker_url,
            "broker_transport": f"{RedisTransport.__module__}:{RedisTransport.__name__}",
            "worker_disable_prefetch": True,  # what a worker cannot start now stays in the queue, for others
            "broker_transport_options": {
                # Keys of our own: messages of other systems on this Redis are not ours to restore, nor ours theirs.
                "unacked_key": "yyc3.unacked",
                "unacked_index_key": "yyc3.unacked_index",
                "unacked_mutex_key": "yyc3.unacked_mutex",
                "visibility_timeout": int(visibility.total_seconds()),
                "unacked_restore_interval": 5,
                "unacked_restore_throttle": 1,  # look each 5 s
                "socket_connect_timeout": 5,
                "socket_timeout": 30,
                "socket_path": address.socket,
            },
        }
        return settings | {"broker_use_ssl": _tls(url)} if url.startswith("rediss") else settings

    def queue(self, name: str) -> Queue:
        """Return a queue; on Redis it has a name and nothing else."""
        return Queue(name, Exchange(""), routing_key=name)

    def declare(self, connection: Connection, queues: Queues, name: str, *, foreign: bool) -> None:
        """Do nothing: publishing creates the queue."""

    def length(self, channel: Any, name: str) -> int:
        """Return the length of the list."""
        return int(channel._size(name))

    def prepare_consumer(self, connection: Connection) -> None:
        """Do nothing: the transport quarantines by itself."""


def _tls(url: str) -> dict[str, Any]:
    """Return the TLS options of a rediss URL; kombu reads them only for its own transport.

    Certificates are verified unless the URL has `ssl_cert_reqs=none`.
    """
    query = dict(parse_qsl(urlsplit(url).query))
    wanted = query.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    options: dict[str, Any] = {"ssl_cert_reqs": _VERIFICATION.get(wanted, ssl.CERT_REQUIRED)}
    return options | {name: query[name] for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile") if name in query}


def _is_message(item: bytes | str) -> bool:
    """Whether kombu can make a message of an item."""
    try:
        found = _loaded(item)
        properties = found["properties"]
        delivery = properties["delivery_info"]
        if properties.get("body_encoding") == "base64":
            b64decode(found["body"])
        return (
            isinstance(properties["delivery_tag"], str)
            and isinstance(delivery["exchange"], str)
            and isinstance(delivery["routing_key"], str)
            and isinstance(found.get("headers", {}), dict)
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, binascii.Error):
        return False


def _loaded(item: bytes | str) -> Any:
    """Read JSON as kombu does, which takes half characters: the task refuses them with a word to the sender."""
    try:
        return orjson.loads(item)
    except orjson.JSONDecodeError:
        return json.loads(item.decode() if isinstance(item, bytes) else item)


class _Client(redis.Redis):
    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        reply = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name != "BRPOP" or not reply or _is_message(reply[1]):
            return reply
        _log.warning(
            "an item that is not a message was quarantined; it is not logged",
            queue=QUARANTINE,
            code="undecodable_message",
        )
        with self.pipeline(transaction=False) as pipe:
            pipe.lpush(QUARANTINE, reply[1])
            pipe.ltrim(QUARANTINE, 0, KEPT_MESSAGES - 1)
            pipe.execute()
        return None  # as if nothing had arrived


class _QoS(kombu_redis.QoS):
    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Restore unacknowledged messages, unless the connection is broken or closed.

        kombu 5.7 has then lost its address or its transport, and asking for them would raise. The messages
        are restored by the visibility timeout.
        """
        transport = self.channel.connection
        if transport is not None and transport.client is not None:
            super().restore_unacked_once(stderr)


class _Channel(kombu_redis.Channel):
    QoS = _QoS

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Return the arguments of a connection, to a unix socket where there is one.

        kombu would read the path from a URL, but then uses its own transport instead of this one.
        """
        options: Any = self.connection.client.transport_options if self.connection.client else {}
        path = options.get("socket_path")
        if path is not None:
            self.connection_class = redis.UnixDomainSocketConnection
        found: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[misc]
        if path is None:
            return found
        return {name: value for name, value in found.items() if name not in _OF_TCP} | {"path": path}

    def _get_client(self) -> type[redis.Redis]:
        return _Client

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        super()._put(queue, message, **options)
        if queue == QUARANTINE:
            with self.conn_or_acquire() as client:
                client.ltrim(QUARANTINE, 0, KEPT_MESSAGES - 1)


class RedisTransport(kombu_redis.Transport):
    """kombu's transport, which quarantines items that are not messages and survives a broken connection."""

    Channel = _Channel
