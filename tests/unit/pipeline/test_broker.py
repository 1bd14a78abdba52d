"""What is asked of a broker before anybody is there."""

import asyncio
import ssl
import time
from typing import Any

import pytest

from pipeline.broker import Publisher, make_app, queue_declaration
from pipeline.broker.quarantine import QUARANTINE
from schemas.doorbells import Doorbell, Lane
from schemas.errors import BrokerUnavailable


@pytest.mark.parametrize(
    ("url", "secured"),
    [
        ("redis://:p@127.0.0.1:9/2", None),
        ("rediss://:p@127.0.0.1:9/2", ssl.CERT_REQUIRED),
        ("rediss://:p@127.0.0.1:9/2?ssl_cert_reqs=none", ssl.CERT_NONE),
        ("rediss://:p@127.0.0.1:9/2?ssl_cert_reqs=CERT_OPTIONAL&ssl_ca_certs=/ca.pem", ssl.CERT_OPTIONAL),
    ],
)
def test_a_broker_that_wants_tls_is_never_spoken_to_in_clear(url: str, secured: int | None) -> None:
    app = make_app(url)
    with app.connection_for_write() as connection:
        transport: Any = connection.transport
        channel = transport.Channel.__new__(transport.Channel)
        channel.connection = transport
        channel.connection_class, channel.connection_class_ssl = "plain", "tls"
        options = connection.ssl or {}
        assert bool(options) is (secured is not None)
        assert options.get("ssl_cert_reqs") == secured
        assert (connection.password, str(connection.virtual_host).strip("/")) == ("p", "2")
        assert options.get("ssl_ca_certs") == ("/ca.pem" if "ca.pem" in url else None)
    app.close()


def test_our_queues_are_replicated_and_those_that_others_declare_too_are_plain() -> None:
    bulk, aside, intake = (queue_declaration(name) for name in ("m.bulk", QUARANTINE, "yyc3.intake"))
    assert bulk.queue_arguments["x-queue-type"] == aside.queue_arguments["x-queue-type"] == "quorum"
    assert bulk.queue_arguments["x-dead-letter-routing-key"] == QUARANTINE
    assert "x-dead-letter-exchange" not in aside.queue_arguments
    assert not intake.queue_arguments
    assert intake.durable


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
async def test_a_broker_that_closes_every_connection_is_away_and_nothing_else(scheme: str) -> None:
    """So do proxies whose server is gone."""

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        publisher = Publisher(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}//")
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(BrokerUnavailable):
                await publisher.publish([Doorbell(model="m", lane=Lane.BULK)])
        assert time.monotonic() - began < 5, "a submit waits for this"
        await publisher.close()
