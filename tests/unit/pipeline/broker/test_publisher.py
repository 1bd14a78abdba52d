"""The publisher, where no broker answers."""

import asyncio
import time

import pytest

from pipeline.broker import Publisher
from schemas.doorbells import Doorbell, Lane
from schemas.errors import BrokerUnavailable


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
async def test_a_broker_that_closes_every_connection_is_unavailable(scheme: str) -> None:
    """Proxies whose server is gone behave so."""

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        publisher = Publisher(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}//")
        started = time.monotonic()
        for _ in range(2):
            with pytest.raises(BrokerUnavailable):
                await publisher.publish([Doorbell(model="m", lane=Lane.BULK)])
        assert time.monotonic() - started < 5, "a submit waits for this"
        await publisher.close()
