"""Sends an answer, whole or as a stream of events, with the fault of its request."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from aiohttp import web

from simulator.engine.request_rows import RequestRows
from simulator.errors import engine_dead_error
from simulator.http.responses import ChunkBuilder
from simulator.http.service import ParsedRequest

_GARBAGE_BODIES = b'{"id": "chatcmpl-', b"<html><body>502 from a proxy that knows no JSON</body></html>"
_DONE_EVENT = b"data: [DONE]\n\n"


async def apply_delay(request: web.Request, parsed: ParsedRequest) -> None:
    """Delay an answer that has the fault `slow` or `hang`.

    After its seconds, `hang` closes the connection; without seconds it waits for the caller.

    Raises:
        ConnectionResetError: the fault closed the connection.

    """
    fault = parsed.fault
    if fault is None:
        return
    if fault.kind == "slow":
        await asyncio.sleep(fault.delay_seconds)
    elif fault.kind == "hang":
        if fault.seconds is None:
            # Ends when the caller disconnects, which cancels this handler, or at shutdown.
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(fault.seconds or 0)
        _close_connection(request)
        raise ConnectionResetError("fault hang")


def _close_connection(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()


async def send_json(request: web.Request, parsed: ParsedRequest, answer: dict[str, Any]) -> web.StreamResponse:
    """Send a whole answer; the faults `crash`, `garbage` and `cut` replace or shorten it.

    Raises:
        RequestRejected: 500, with the fault `crash`.

    """
    kind = parsed.fault.kind if parsed.fault else ""
    if kind == "crash":
        raise engine_dead_error()
    if kind == "garbage":
        body = _GARBAGE_BODIES[len(parsed.rows) % 2]
        return web.Response(body=body, content_type="application/json")
    content = orjson.dumps(answer)
    if kind == "cut":
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(content)
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        _close_connection(request)
        return response
    return web.Response(body=content, content_type="application/json")


class EventStream:
    """Writes one streamed answer."""

    def __init__(
        self, request: web.Request, parsed: ParsedRequest, rows: RequestRows, chunks: ChunkBuilder, chat: bool
    ) -> None:
        self._request = request
        self._parsed = parsed
        self._rows = rows
        self._chunks = chunks
        self._chat = chat
        self._fault = parsed.fault.kind if parsed.fault else ""
        self._unfinished = set(range(len(rows.rows)))

    async def send(self) -> web.StreamResponse:
        """Write all events; the faults `cut`, `crash` and `garbage` end the stream early."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        first = await self._rows.next_progress()
        await response.prepare(self._request)
        if self._chat:
            events = [_format_event(self._chunks.role_chunk(index)) for index in sorted(self._unfinished)]
            await response.write(b"".join(events))
        if self._fault == "garbage":
            await response.write(b"data: " + _GARBAGE_BODIES[0] + b"\n\n")
            return response
        index, count = first
        while True:
            if await self._write_row_event(response, index, count):
                return response
            if not self._unfinished:
                break
            index, count = await self._rows.next_progress()
        if self._parsed.sampling.include_usage:
            await response.write(_format_event(self._chunks.usage_chunk()))
        await response.write(_DONE_EVENT)
        return response

    async def _write_row_event(self, response: web.StreamResponse, index: int, count: int) -> bool:
        """Write the event of one row, and return whether a fault ends the stream here."""
        if index not in self._unfinished:
            return False
        tokens = len(self._rows.rows[index].plan.tokens)
        if self._fault in ("cut", "crash") and 2 * count >= tokens:
            if self._fault == "crash":
                await response.write(_format_event(engine_dead_error().body()) + _DONE_EVENT)
            else:
                _close_connection(self._request)
            return True
        await response.write(_format_event(self._chunks.token_chunk(index, count)))
        if count >= tokens:
            self._unfinished.discard(index)
        return False


def _format_event(content: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"
