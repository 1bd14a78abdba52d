"""A proxy is used where an entry names one, and never for this machine or a private network."""

import asyncio
from datetime import timedelta

import pytest

from pipeline.engine import EngineClient, EnginePool
from pipeline.models import ModelEntry
from schemas.errors import EngineUnavailable


def entry(**fields: object) -> ModelEntry:
    return ModelEntry.model_validate({"name": "m", "kinds": ("chat",), **fields})


@pytest.mark.parametrize(
    ("endpoint", "proxied"),
    [
        ("http://engine.example.com:8000", True),
        ("https://8.8.8.8", True),
        ("http://127.0.0.1:10086", False),
        ("http://[::1]:10086", False),
        ("http://localhost:10086", False),
        ("http://10.1.2.3:10086", False),
        ("http://192.168.0.9", False),
        ("http://vllm-chatglm3:10086", False),
        ("http://host.docker.internal:10086", False),
    ],
)
def test_only_far_endpoints_are_reached_through_the_proxy(endpoint: str, proxied: bool) -> None:
    proxy = "http://proxy.example.com:3128"
    assert entry(endpoints=[endpoint], proxy=proxy).proxy_to(endpoint) == (proxy if proxied else None)
    assert entry(endpoints=[endpoint]).proxy_to(endpoint) is None


@pytest.mark.parametrize("proxy", ["socks5://p:1", "p:1", "http://user:secret@p:1", ""])
def test_a_proxy_that_is_none_is_refused_without_its_password(proxy: str) -> None:
    with pytest.raises(ValueError, match="a proxy is a URL such as") as refused:
        entry(port=1, proxy=proxy)
    assert "secret" not in str(refused.value).partition("[type=")[0]


async def test_requests_go_through_the_proxy_of_the_entry_until_it_names_none() -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = EngineClient(timedelta(seconds=5))
    far = "http://engine.invalid:8000"
    pool = EnginePool(entry(endpoints=[far], proxy=proxy), client, gives_way=False)
    assert (await client.get(far, "/health")).status_code == 200
    assert asked == [b"GET http://engine.invalid:8000/health HTTP/1.1\r\n"]
    await pool.update(entry(endpoints=[far], revision="2"))
    with pytest.raises(EngineUnavailable):
        await client.get(far, "/health", 3)
    assert len(asked) == 1
    await client.close()
    server.close()
