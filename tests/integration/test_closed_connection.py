"""A connection to Redis that is closed while a message is not acknowledged."""

from typing import Any

from kombu import Connection

from pipeline.broker.redis import RedisTransport
from tests.support.sandbox import Sandbox


def _connect(sandbox: Sandbox) -> Connection:
    return Connection(sandbox.redis_url, transport=RedisTransport)


def test_a_closed_connection_restores_its_message_once(sandbox: Sandbox) -> None:
    with _connect(sandbox) as connection:
        connection.SimpleQueue("unacknowledged").put({"n": 1})
    connection = _connect(sandbox)
    channel: Any = connection.channel()
    connection.SimpleQueue("unacknowledged", channel=channel).get(timeout=10)
    qos = channel.qos
    connection.close()
    channel.close()
    qos.restore_unacked_once()  # Celery asks again when it ends, and so does the interpreter
    with _connect(sandbox) as connection:
        assert connection.SimpleQueue("unacknowledged").qsize() == 1
