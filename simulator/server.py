"""Starts and stops the HTTP server."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from aiohttp import web

from simulator.admin import AdminRoutes
from simulator.errors import RequestRejected, SimulatorError, by_status
from simulator.options import SimulatorOptions
from simulator.routes import Handler, Routes, json_response
from simulator.service import Service

_LOG = logging.getLogger("simulator")
_LARGEST_BODY_BYTES = 512 * 1024 * 1024
_GOODBYE_SECONDS = 0.5


async def serve(options: SimulatorOptions, ready: Callable[[str], None] | None = None) -> None:
    """Run a simulator until this call is cancelled.

    Cancelled, it stops listening, answers what is in flight with the text written so far and `finish_reason` "abort",
    as vLLM does, and returns by raising CancelledError.

    Args:
        options: how it behaves.
        ready: called once with the base URL, when it accepts connections.

    Raises:
        SimulatorError: the port is taken, or the answers file cannot be used.

    """
    service = Service(options)
    app = web.Application(middlewares=[_answer_errors], client_max_size=_LARGEST_BODY_BYTES)
    app.add_routes([*Routes(service).table(), *AdminRoutes(service).table()])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_GOODBYE_SECONDS)
    await runner.setup()
    listener = _listen(options)
    service.clockwork.start()
    try:
        site = web.SockSite(runner, listener, backlog=1024)
        await site.start()
        host, port = listener.getsockname()[:2]
        if ready is not None:
            ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        await asyncio.get_running_loop().create_future()
    finally:
        await service.clockwork.stop()
        await runner.cleanup()
        listener.close()


def _listen(options: SimulatorOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except OSError as problem:
        listener.close()
        raise SimulatorError(
            f"The simulator cannot listen on {options.host}:{options.port} ({problem.strerror}); "
            "choose another --port, or 0 for any free one."
        ) from problem
    return listener


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RequestRejected as rejected:
        return json_response(rejected.body(), rejected.status)
    except web.HTTPException as problem:
        response = json_response({"detail": problem.reason}, problem.status)
        if "Allow" in problem.headers:
            response.headers["Allow"] = problem.headers["Allow"]
        return response
    except ConnectionError:
        # The caller went away, or a fault hung up on it. aiohttp logs a traceback for the error, but says nothing of an
        # answer that it cannot write.
        return web.Response()
    except Exception as problem:  # noqa: BLE001 - the outermost edge: one request fails, the server stays
        _LOG.exception("A request failed inside the simulator.")
        return json_response(by_status(500, f"{type(problem).__name__}: {problem}").body(), 500)
