"""vLLM's HTTP routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from simulator.bodies import ChunkWriter, Envelope, chat_answer, completion_answer
from simulator.errors import RequestRejected, engine_died
from simulator.generating import Rows
from simulator.sampling import validation_error
from simulator.service import Service, Work, new_identity

_GARBAGE = b'{"id": "chatcmpl-', b"<html><body>502 from a proxy that knows no JSON</body></html>"
_DONE = b"data: [DONE]\n\n"


def json_response(content: Any, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=orjson.dumps(content), status=status, content_type="application/json")


async def read_body(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        RequestRejected: 400, worded as vLLM does.

    """
    if request.content_type != "application/json":
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise RequestRejected(400, message, "Bad Request")
    raw = await request.read()
    if not raw:
        raise validation_error("missing", "", "Field required", None)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as problem:
        extra = {"error": problem.msg}
        raise validation_error("json_invalid", str(problem.pos), "JSON decode error", {}, extra) from problem
    if not isinstance(body, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise validation_error("model_attributes_type", "", message, body)
    return body


class Routes:
    """Handlers of one simulator; `table` lists them."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def table(self) -> list[web.RouteDef]:
        """All routes of the model server; the batch route is missing in old versions, as in theirs."""
        routes = [
            web.get("/health", self._empty),
            web.route("*", "/ping", self._empty),
            web.get("/version", self._version),
            web.get("/v1/models", self._models),
            web.get("/metrics", self._metrics),
            web.get("/load", self._load),
            web.post("/tokenize", self._tokenize),
            web.post("/detokenize", self._detokenize),
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/completions", self._completion),
        ]
        if not self._service.options.legacy:
            routes.append(web.post("/v1/chat/completions/batch", self._batch))
        return routes

    async def _empty(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return json_response({"version": self._service.options.vllm_version, "simulator": True})

    async def _models(self, _: web.Request) -> web.Response:
        service = self._service
        permission = {
            "id": f"modelperm-{service.created:016x}",
            "object": "model_permission",
            "created": service.created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        model = {
            "id": service.options.model,
            "object": "model",
            "created": service.created,
            "owned_by": "simulator",
            "root": service.options.model,
            "parent": None,
            "max_model_len": service.options.max_model_len,
            "permission": [permission],
        }
        return json_response({"object": "list", "data": [model]})

    async def _metrics(self, _: web.Request) -> web.Response:
        text = self._service.metrics.text(self._service.engine)
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=1.0.0; charset=utf-8"})

    async def _load(self, _: web.Request) -> web.Response:
        return json_response({"server_load": self._service.load})

    async def _tokenize(self, request: web.Request) -> web.Response:
        service = self._service
        body = await read_body(request)
        tokens = service.prompt_to_count(body)
        return json_response(
            {
                "count": len(tokens),
                "max_model_len": service.options.max_model_len,
                "tokens": service.tokenizer.ids(tokens),
                "token_strs": list(tokens) if body.get("return_token_strs") else None,
            }
        )

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = await read_body(request)
        self._service.check_model(body)
        tokens = body.get("tokens")
        if not isinstance(tokens, list):
            kind = "list_type" if "tokens" in body else "missing"
            message = "Input should be a valid list" if "tokens" in body else "Field required"
            raise validation_error(kind, "tokens", message, tokens if "tokens" in body else body)
        return json_response({"prompt": self._service.tokenizer.text(tokens)})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        work = self._service.chat(body)

        def answer(envelope: Envelope, rows: Rows) -> dict[str, Any]:
            return chat_answer(envelope, rows.rows, work.per_prompt)

        return await self._generate(request, body, work, answer, chat=True)

    async def _batch(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        work = self._service.batch(body)

        def answer(envelope: Envelope, rows: Rows) -> dict[str, Any]:
            return chat_answer(envelope, rows.rows, batch=True)

        return await self._generate(request, body, work, answer, chat=True)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        work = self._service.completion(body)

        def answer(envelope: Envelope, rows: Rows) -> dict[str, Any]:
            return completion_answer(envelope, rows.rows, work.per_prompt, bool(body.get("echo")))

        return await self._generate(request, body, work, answer, chat=False)

    async def _generate(
        self,
        request: web.Request,
        body: dict[str, Any],
        work: Work,
        answer: Callable[[Envelope, Rows], dict[str, Any]],
        chat: bool,
    ) -> web.StreamResponse:
        service, sampling = self._service, work.sampling
        identity = new_identity(body, request.headers.get("X-Request-Id"))
        envelope = Envelope(identity, service.options.model, service.options.fingerprint, sampling, service.tokenizer)
        priority = sampling.priority
        if chat and not sampling.priority and "X-Vllm-Priority" in request.headers:
            priority = _header_priority(request.headers["X-Vllm-Priority"])
        service.load += 1
        try:
            with service.rows_of(work) as rows:
                rows.submit(priority, follow=sampling.stream)
                if sampling.stream:
                    await _delay(request, work)
                    writer = ChunkWriter(envelope, rows.rows, work.per_prompt, chat)
                    return await _Stream(request, work, rows, writer, chat).send()
                await rows.finished()
                await _delay(request, work)
                return await _finish_plain(request, work, answer(envelope, rows))
        finally:
            service.load -= 1


def _header_priority(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise RequestRejected(400, f"X-Vllm-Priority must be a whole number, not {value!r}.") from None


async def _delay(request: web.Request, work: Work) -> None:
    fault = work.fault
    if fault is None:
        return
    if fault.kind == "slow":
        await asyncio.sleep(fault.delay_seconds)
    elif fault.kind == "hang":
        if fault.seconds is None:
            # Until the caller gives up, which cancels this handler, or the server stops.
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(fault.seconds or 0)
        _close(request)
        raise ConnectionResetError("fault hang")


def _close(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()


async def _finish_plain(request: web.Request, work: Work, answer: dict[str, Any]) -> web.StreamResponse:
    kind = work.fault.kind if work.fault else ""
    if kind == "crash":
        raise engine_died()
    if kind == "garbage":
        body = _GARBAGE[len(work.rows) % 2]
        return web.Response(body=body, content_type="application/json")
    content = orjson.dumps(answer)
    if kind == "cut":
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(content)
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        _close(request)
        return response
    return web.Response(body=content, content_type="application/json")


class _Stream:
    """One streamed answer."""

    def __init__(self, request: web.Request, work: Work, rows: Rows, writer: ChunkWriter, chat: bool) -> None:
        self._request = request
        self._work = work
        self._rows = rows
        self._writer = writer
        self._chat = chat
        self._fault = work.fault.kind if work.fault else ""
        self._unfinished = set(range(len(rows.rows)))

    async def send(self) -> web.StreamResponse:
        """Write all events; ends early with the faults `cut`, `crash` and `garbage`."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        first = await self._rows.written()
        await response.prepare(self._request)
        if self._chat:
            openings = [_event(self._writer.opening(place)) for place in sorted(self._unfinished)]
            await response.write(b"".join(openings))
        if self._fault == "garbage":
            await response.write(b"data: " + _GARBAGE[0] + b"\n\n")
            return response
        place, count = first
        while True:
            if await self._step(response, place, count):
                return response
            if not self._unfinished:
                break
            place, count = await self._rows.written()
        if self._work.sampling.include_usage:
            await response.write(_event(self._writer.closing()))
        await response.write(_DONE)
        return response

    async def _step(self, response: web.StreamResponse, place: int, count: int) -> bool:
        """Write the event of one row; whether the stream is to end here."""
        if place not in self._unfinished:
            return False
        tokens = len(self._rows.rows[place].plan.tokens)
        if self._fault in ("cut", "crash") and 2 * count >= tokens:
            if self._fault == "crash":
                await response.write(_event(engine_died().body()) + _DONE)
            else:
                _close(self._request)
            return True
        await response.write(_event(self._writer.step(place, count)))
        if count >= tokens:
            self._unfinished.discard(place)
        return False


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
