"""The HTTP routes of a vLLM server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from simulator.engine.request_rows import RequestRows
from simulator.errors import RequestRejected
from simulator.http.responses import ChunkBuilder, Envelope, build_chat_response, build_completion_response
from simulator.http.sending import EventStream, apply_delay, send_json
from simulator.http.service import ParsedRequest, Service, choose_response_id
from simulator.requests.sampling import validation_error

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_response(content: Any, status: int = 200) -> web.Response:
    """Build a JSON response."""
    return web.Response(body=orjson.dumps(content), status=status, content_type="application/json")


async def read_body(request: web.Request) -> dict[str, Any]:
    """Read the JSON object of a request.

    Raises:
        RequestRejected: 400, with vLLM's text.

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
        context = {"error": problem.msg}
        raise validation_error("json_invalid", str(problem.pos), "JSON decode error", {}, context) from problem
    if not isinstance(body, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise validation_error("model_attributes_type", "", message, body)
    return body


class Routes:
    """Handlers of one simulator; `table` lists the routes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def table(self) -> list[web.RouteDef]:
        """List the routes of the model server; below 0.12 there is no batch route, as in vLLM."""
        routes = [
            web.get("/health", self._respond_empty),
            web.route("*", "/ping", self._respond_empty),
            web.get("/version", self._show_version),
            web.get("/v1/models", self._list_models),
            web.get("/metrics", self._show_metrics),
            web.get("/load", self._show_load),
            web.post("/tokenize", self._tokenize),
            web.post("/detokenize", self._detokenize),
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/completions", self._completion),
        ]
        if not self._service.options.legacy:
            routes.append(web.post("/v1/chat/completions/batch", self._batch))
        return routes

    async def _respond_empty(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _show_version(self, _: web.Request) -> web.Response:
        return json_response({"version": self._service.options.vllm_version, "simulator": True})

    async def _list_models(self, _: web.Request) -> web.Response:
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

    async def _show_metrics(self, _: web.Request) -> web.Response:
        text = self._service.metrics.render(self._service.engine)
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=1.0.0; charset=utf-8"})

    async def _show_load(self, _: web.Request) -> web.Response:
        return json_response({"server_load": self._service.load})

    async def _tokenize(self, request: web.Request) -> web.Response:
        service = self._service
        body = await read_body(request)
        tokens = service.parse_tokenize(body)
        return json_response(
            {
                "count": len(tokens),
                "max_model_len": service.options.max_model_len,
                "tokens": service.tokenizer.tokens_to_ids(tokens),
                "token_strs": list(tokens) if body.get("return_token_strs") else None,
            }
        )

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = await read_body(request)
        self._service.check_model(body)
        tokens = body.get("tokens")
        if not isinstance(tokens, list):
            error_type = "list_type" if "tokens" in body else "missing"
            message = "Input should be a valid list" if "tokens" in body else "Field required"
            raise validation_error(error_type, "tokens", message, tokens if "tokens" in body else body)
        return json_response({"prompt": self._service.tokenizer.decode(tokens)})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        parsed = self._service.parse_chat(body)

        def build(envelope: Envelope, rows: RequestRows) -> dict[str, Any]:
            return build_chat_response(envelope, rows.rows, parsed.per_prompt)

        return await self._generate(request, body, parsed, build, chat=True)

    async def _batch(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        parsed = self._service.parse_batch(body)

        def build(envelope: Envelope, rows: RequestRows) -> dict[str, Any]:
            return build_chat_response(envelope, rows.rows, batch=True)

        return await self._generate(request, body, parsed, build, chat=True)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        parsed = self._service.parse_completion(body)

        def build(envelope: Envelope, rows: RequestRows) -> dict[str, Any]:
            return build_completion_response(envelope, rows.rows, parsed.per_prompt, bool(body.get("echo")))

        return await self._generate(request, body, parsed, build, chat=False)

    async def _generate(
        self,
        request: web.Request,
        body: dict[str, Any],
        parsed: ParsedRequest,
        build: Callable[[Envelope, RequestRows], dict[str, Any]],
        chat: bool,
    ) -> web.StreamResponse:
        service, sampling = self._service, parsed.sampling
        response_id = choose_response_id(body, request.headers.get("X-Request-Id"))
        envelope = Envelope(
            response_id, service.options.model, service.options.fingerprint, sampling, service.tokenizer
        )
        priority = sampling.priority
        if chat and not sampling.priority and "X-Vllm-Priority" in request.headers:
            priority = _parse_priority(request.headers["X-Vllm-Priority"])
        service.load += 1
        try:
            with service.start_rows(parsed) as rows:
                rows.submit(priority, stream=sampling.stream)
                if sampling.stream:
                    await apply_delay(request, parsed)
                    chunks = ChunkBuilder(envelope, rows.rows, parsed.per_prompt, chat)
                    return await EventStream(request, parsed, rows, chunks, chat).send()
                await rows.wait_finished()
                await apply_delay(request, parsed)
                return await send_json(request, parsed, build(envelope, rows))
        finally:
            service.load -= 1


def _parse_priority(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise RequestRejected(400, f"X-Vllm-Priority must be an integer, not {value!r}.") from None
