"""One HTTP client for all endpoints of a process: hundreds of requests in flight, connections reused."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import orjson
from httpx_aiohttp import AiohttpTransport

from pipeline.engine.errors import from_status, translate_errors
from pipeline.engine.responses import LONGEST_ANSWER, StreamedCompletion, parse_batch, parse_single
from pipeline.kinds.requests import Completion, CompletionRequest
from schemas.errors import EngineError, InvalidOutput

_CONNECT_SECONDS = 5.0
_MAX_CONNECTIONS = 1_024
# Below uvicorn's 5 s: a connection that the server closes under a request looks like an engine failure.
_KEEPALIVE_SECONDS = 4.0
CHAT_ROUTE = "/v1/chat/completions"
BATCH_ROUTE = "/v1/chat/completions/batch"
_JSON = {"content-type": "application/json"}
_NONE: Mapping[str, Any] = MappingProxyType({})


class Reply(NamedTuple):
    """A whole response; `content` is not compressed any more."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes


class BatchRouteMissing(Exception):  # noqa: N818 - it describes a server, nothing failed
    """This server has no /v1/chat/completions/batch: send rows singly."""


class EngineClient:
    """Sends requests to endpoints. The aiohttp transport costs a tenth of httpx's own at 64 connections.

    Args:
        timeout: of a whole request, including the engine's work.
        api_key: sent as a bearer token if given.

    Certificates are checked against SSL_CERT_FILE or SSL_CERT_DIR where they are set, else against those of certifi.
    """

    def __init__(self, timeout: timedelta, api_key: str | None = None) -> None:
        self._seconds = timeout.total_seconds()
        # Answers are short and the network is near: an engine that compressed them would only delay the first token.
        self._headers = {"accept-encoding": "identity"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._transport = self._make_transport(None)
        self._proxied: dict[str, AiohttpTransport] = {}  # by proxy
        self._ways: dict[str, AiohttpTransport] = {}  # by endpoint, of those behind a proxy
        self._timeout = {"timeout": {"connect": _CONNECT_SECONDS, "read": self._seconds, "write": None, "pool": None}}

    def _make_transport(self, proxy: str | None) -> AiohttpTransport:
        limits = httpx.Limits(max_connections=_MAX_CONNECTIONS, keepalive_expiry=_KEEPALIVE_SECONDS)
        # The transport alone: redirects, cookies and authentication flows cost as much again, and engines have none.
        return AiohttpTransport(
            limits=limits,
            trust_env=False,
            verify=httpx.create_ssl_context(),
            proxy=httpx.Proxy(proxy) if proxy else None,
        )

    def use_proxy(self, endpoint: str, proxy: str | None) -> None:
        """Reach an endpoint through a proxy from now on, or directly."""
        if proxy is None:
            self._ways.pop(endpoint, None)
            return
        if proxy not in self._proxied:
            self._proxied[proxy] = self._make_transport(proxy)
        self._ways[endpoint] = self._proxied[proxy]

    async def close(self) -> None:
        """Close every connection; requests in flight are aborted."""
        for transport in (self._transport, *self._proxied.values()):
            await transport.aclose()

    async def get(self, endpoint: str, path: str, seconds: float | None = None) -> Reply:
        """Send a GET and return the reply, whatever its status; `seconds` if it may take less time than an answer.

        Raises:
            EngineError: the endpoint did not answer.
        """
        with translate_errors(endpoint):
            return await self._whole("GET", endpoint + path, None, seconds, LONGEST_ANSWER)

    async def post(self, endpoint: str, path: str, body: Any, seconds: float | None = None, *, rows: int = 1) -> Reply:
        """Send a POST of JSON and return the reply, whatever its status.

        Raises:
            EngineError: the endpoint did not answer, or with more than is read for this many rows.
        """
        with translate_errors(endpoint):
            return await self._whole("POST", endpoint + path, body, seconds, rows * LONGEST_ANSWER)

    async def complete(
        self,
        endpoint: str,
        model: str,
        request: CompletionRequest,
        priority: int = 0,
        *,
        parameters: Mapping[str, Any] = _NONE,
        streamed: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """Send one row in a request of its own.

        `parameters` are fields that every request to this model has. Streamed, the completion has the
        time to the first token, at a cost for each token; `on_text` is called with each piece as it
        arrives. Cancelling the call aborts the engine request.

        Raises:
            EngineError: the attempt failed.
        """
        body = _body(model, orjson.Fragment(request.conversation), request, priority, parameters)
        if streamed:
            return await self._stream(endpoint, body, on_text)
        started = time.perf_counter()
        response = await self.post(endpoint, CHAT_ROUTE, body)
        if response.status_code != 200:
            raise from_status(response.status_code, response.headers, response.content, endpoint)
        return parse_single(response.content, time.perf_counter() - started)

    async def complete_batch(
        self,
        endpoint: str,
        model: str,
        requests: Sequence[CompletionRequest],
        priority: int = 0,
        *,
        parameters: Mapping[str, Any] = _NONE,
    ) -> list[Completion | EngineError]:
        """Send rows of one template in one request; returns one completion or failed attempt a row.

        Raises:
            EngineError: the whole request failed, possibly because of one row.
            BatchRouteMissing: this server needs single requests.
        """
        conversations = [orjson.Fragment(request.conversation) for request in requests]
        body = _body(model, conversations, requests[0], priority, parameters)
        started = time.perf_counter()
        response = await self.post(endpoint, BATCH_ROUTE, body, rows=len(requests))
        if response.status_code in {405, 501} or (response.status_code == 404 and b'"error"' not in response.content):
            raise BatchRouteMissing
        if response.status_code != 200:
            raise from_status(response.status_code, response.headers, response.content, endpoint)
        return parse_batch(response.content, requests, time.perf_counter() - started)

    async def _open(self, method: str, url: str, body: Any = None) -> httpx.Response:
        """Send a request; the caller reads the response and closes it."""
        content = None if body is None else orjson.dumps(body)
        headers = self._headers if body is None else self._headers | _JSON
        request = httpx.Request(method, url, headers=headers, content=content, extensions=self._timeout)
        return await self._way_to(url).handle_async_request(request)

    def _way_to(self, url: str) -> AiohttpTransport:
        ways = (transport for endpoint, transport in self._ways.items() if url.startswith(f"{endpoint}/"))
        return next(ways, self._transport)

    async def _whole(self, method: str, url: str, body: Any, seconds: float | None, most: int) -> Reply:
        async with asyncio.timeout(min(seconds or self._seconds, self._seconds)):
            response = await self._open(method, url, body)
            try:
                content = await _read(response, most)
            finally:
                await response.aclose()
            return Reply(response.status_code, response.headers, content)

    async def _stream(self, endpoint: str, body: dict[str, Any], on_text: Callable[[str], None] | None) -> Completion:
        started = time.perf_counter()
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        completion = StreamedCompletion(endpoint)
        first: float | None = None
        with translate_errors(endpoint):
            async with asyncio.timeout(self._seconds):
                response = await self._open("POST", endpoint + CHAT_ROUTE, body)
                try:
                    if response.status_code != 200:
                        content = await _read(response, LONGEST_ANSWER)
                        raise from_status(response.status_code, response.headers, content, endpoint)
                    async for piece in _pieces(response):
                        text = completion.feed(piece)
                        if text:
                            first = time.perf_counter() - started if first is None else first
                            if on_text is not None:
                                on_text(text)
                        if completion.done:
                            break
                finally:
                    await response.aclose()
        return completion.result(time.perf_counter() - started, first)


def _pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    """Return the body as it arrives, decompressed if it was compressed all the same."""
    return response.aiter_bytes() if "content-encoding" in response.headers else response.aiter_raw()


async def _read(response: httpx.Response, most: int) -> bytes:
    pieces, size = [], 0
    async for piece in _pieces(response):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise InvalidOutput(f"the engine's answer is longer than {most // 1024**2} MiB; does it honour max_tokens?")
    return b"".join(pieces)


def _body(
    model: str, messages: Any, request: CompletionRequest, priority: int, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    body = {"model": model, "messages": messages, **parameters, **request.template.parameters}
    if priority:
        # Servers without priority scheduling ignore it (recorded).
        body["priority"] = priority
    return body
