"""One HTTP client for all endpoints of a process: hundreds of requests in flight, connections reused."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import httpx
import orjson
from httpx_aiohttp import AiohttpTransport

from pipeline.engine.errors import from_status, mapped
from pipeline.engine.responses import Said, read_batch, read_single
from pipeline.kinds.requests import Answer, Ask
from schemas.errors import EngineError

_CONNECT_SECONDS = 5.0
_MAX_CONNECTIONS = 1_024
# Below uvicorn's 5 s: a connection that the server closes under a request looks like an engine failure.
_KEEP_SECONDS = 4.0
BATCH_ROUTE = "/v1/chat/completions/batch"
_JSON = {"content-type": "application/json"}


class BatchRouteMissing(Exception):  # noqa: N818 - it tells of a server, nothing failed
    """This server has no /v1/chat/completions/batch: send rows singly."""


class EngineClient:
    """Requests to endpoints. The aiohttp transport costs a tenth of httpx's own at 64 connections.

    Args:
        timeout: of a whole request, the engine's work included.
        api_key: sent as a bearer token where given.
    """

    def __init__(self, timeout: timedelta, api_key: str | None = None) -> None:
        self._seconds = timeout.total_seconds()
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=_MAX_CONNECTIONS, keepalive_expiry=_KEEP_SECONDS)
        # The transport alone: redirects, cookies and authentication flows cost as much again, and engines have none.
        self._transport = AiohttpTransport(limits=limits, trust_env=False)
        self._timeout = {"timeout": {"connect": _CONNECT_SECONDS, "read": self._seconds, "write": None, "pool": None}}

    async def close(self) -> None:
        """Close every connection; what is in flight is given up."""
        await self._transport.aclose()

    async def _open(self, method: str, url: str, body: Any = None) -> httpx.Response:
        """Send a request; whoever called reads the response and closes it."""
        content = None if body is None else orjson.dumps(body)
        headers = self._headers if body is None else self._headers | _JSON
        request = httpx.Request(method, url, headers=headers, content=content, extensions=self._timeout)
        return await self._transport.handle_async_request(request)

    async def _whole(self, method: str, url: str, body: Any, seconds: float | None) -> httpx.Response:
        async with asyncio.timeout(min(seconds or self._seconds, self._seconds)):
            response = await self._open(method, url, body)
            try:
                await response.aread()
            finally:
                await response.aclose()
            return response

    async def get(self, endpoint: str, path: str, seconds: float | None = None) -> httpx.Response:
        """A GET, whatever its status; `seconds` where it may take less time than an answer.

        Raises:
            EngineError: nobody answered.
        """
        with mapped(endpoint):
            return await self._whole("GET", endpoint + path, None, seconds)

    async def post(self, endpoint: str, path: str, body: Any, seconds: float | None = None) -> httpx.Response:
        """A POST of JSON, whatever its status; `seconds` where it may take less time than an answer.

        Raises:
            EngineError: nobody answered.
        """
        with mapped(endpoint):
            return await self._whole("POST", endpoint + path, body, seconds)

    async def ask(
        self,
        endpoint: str,
        model: str,
        ask: Ask,
        priority: int = 0,
        *,
        streamed: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """One row in a request of its own.

        Streamed, it tells the time to the first token, at a price for each of them; `on_text` hears of each piece as it
        comes. A caller that is cancelled hangs up on the engine.

        Raises:
            EngineError: the try failed.
        """
        body = _body(model, orjson.Fragment(ask.conversation), ask, priority)
        if streamed:
            return await self._stream(endpoint, body, on_text)
        started = time.perf_counter()
        response = await self.post(endpoint, "/v1/chat/completions", body)
        if response.status_code != 200:
            raise from_status(response.status_code, response.content, endpoint)
        return read_single(response.content, time.perf_counter() - started)

    async def ask_many(
        self, endpoint: str, model: str, asks: Sequence[Ask], priority: int = 0
    ) -> list[Answer | EngineError]:
        """Rows of one shape in one request; one answer or failed try a row.

        Raises:
            EngineError: the whole request failed, perhaps because of one row.
            BatchRouteMissing: this server wants single requests.
        """
        conversations = [orjson.Fragment(ask.conversation) for ask in asks]
        body = _body(model, conversations, asks[0], priority)
        started = time.perf_counter()
        response = await self.post(endpoint, BATCH_ROUTE, body)
        if response.status_code in {405, 501} or (response.status_code == 404 and b'"error"' not in response.content):
            raise BatchRouteMissing
        if response.status_code != 200:
            raise from_status(response.status_code, response.content, endpoint)
        return read_batch(response.content, asks, time.perf_counter() - started)

    async def _stream(self, endpoint: str, body: dict[str, Any], on_text: Callable[[str], None] | None) -> Answer:
        started = time.perf_counter()
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        said = Said()
        first: float | None = None
        with mapped(endpoint):
            async with asyncio.timeout(self._seconds):
                response = await self._open("POST", endpoint + "/v1/chat/completions", body)
                try:
                    if response.status_code != 200:
                        raise from_status(response.status_code, await response.aread(), endpoint)
                    # Lines are cut here and not by httpx: of a token's cost that was the larger part.
                    rest = b""
                    async for piece in response.aiter_raw():
                        *lines, rest = (rest + piece).split(b"\n")
                        text = said.hear(lines, endpoint)
                        if text:
                            first = time.perf_counter() - started if first is None else first
                            if on_text is not None:
                                on_text(text)
                        if said.done:
                            break
                finally:
                    await response.aclose()
        return said.answer(time.perf_counter() - started, first, endpoint)


def _body(model: str, messages: Any, ask: Ask, priority: int) -> dict[str, Any]:
    body = {"model": model, "messages": messages, **ask.shape.parameters}
    if priority:
        # Servers without priority scheduling ignore it (recorded).
        body["priority"] = priority
    return body


__all__ = ["BATCH_ROUTE", "BatchRouteMissing", "EngineClient"]
