"""A broker from outside the package carries doorbells; an unknown scheme is refused in one sentence."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from celery.app.amqp import Queues
from kombu import Connection, Exchange, Queue

from pipeline.broker import Publisher, make_app
from pipeline.broker.protocol import Broker
from pipeline.broker.registry import BROKERS, broker_for, broker_of
from pipeline.settings import load_settings
from schemas.doorbells import Doorbell, Lane
from schemas.errors import InvalidSetting
from schemas.ids import JobId

URL = "memory://"
MODEL = "only-in-this-test"  # queues of kombu's transport are shared by the whole process


class MemoryBroker:
    """kombu's transport within one process."""

    def __init__(self) -> None:
        self.publish_options: Mapping[str, Any] = {}

    def celery_settings(self, url: str, visibility: timedelta) -> dict[str, Any]:
        return {"broker_transport_options": {"visibility_timeout": visibility.total_seconds()}}

    def queue(self, name: str) -> Queue:
        return Queue(name, Exchange(""), routing_key=name)

    def declare(self, connection: Connection, queues: Queues, name: str, *, foreign: bool) -> None:
        if not foreign:
            self.queue(name)(connection.default_channel).declare()

    def length(self, channel: Any, name: str) -> int:
        return int(channel._size(name))

    def prepare_consumer(self, connection: Connection) -> None:
        del connection


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker: Broker = MemoryBroker()
    monkeypatch.setitem(BROKERS, "memory", broker)
    return broker


@pytest.mark.usefixtures("memory")
async def test_a_registered_broker_carries_doorbells_and_counts_them() -> None:
    publisher = Publisher(URL)
    queue = f"{MODEL}.bulk"
    assert await publisher.depths([queue, MODEL]) == {queue: 0, MODEL: 0}
    await publisher.publish(
        [Doorbell(model=MODEL, lane=Lane.BULK, chunk=JobId(2_048)), Doorbell(model=MODEL, lane=Lane.BULK)]
    )
    assert await publisher.depths([queue, MODEL]) == {queue: 2, MODEL: 0}
    assert await publisher.quarantined() == 0
    with publisher.app.connection_for_read() as connection, connection.SimpleQueue(queue) as received:
        message = received.get(block=False)
        arguments, _, _ = message.payload
        message.ack()
    assert message.headers["task"] == "yyc3.chunk"
    assert arguments == [{"v": 1, "model": MODEL, "lane": "bulk", "chunk": 2_048}]
    assert await publisher.depths([queue]) == {queue: 1}
    await publisher.close()


def test_an_application_finds_its_registered_broker(memory: Broker) -> None:
    app = make_app(URL, visibility=timedelta(seconds=7))
    assert broker_of(app) is memory
    assert app.conf.broker_transport_options == {"visibility_timeout": 7.0}
    app.close()


@pytest.mark.usefixtures("memory")
def test_the_url_of_a_registered_broker_is_a_valid_setting() -> None:
    settings = load_settings(broker_url=URL)
    assert settings.broker_url is not None
    assert broker_for(settings.broker_url.get_secret_value()) is BROKERS["memory"]


@pytest.mark.parametrize("url", ["memory://", "kafka://u:secret@host:9092/0", "a plain word"])
def test_an_unknown_scheme_is_refused_with_the_known_ones(url: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        Publisher(url)
    known = "redis://, rediss://, redis+socket://, unix://, amqp://, amqps://"
    assert refused.value.message == f"BROKER_URL must begin with one of {known}"
