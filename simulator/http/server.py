"""Starts and stops the HTTP server, and maps errors to responses."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from aiohttp import web

from simulator.errors import RequestRejected, SimulatorError, error_for_status
from simulator.http.admin import AdminRoutes
from simulator.http.routes import Handler, Routes, json_response
from simulator.http.service import Service
from simulator.options import SimulatorOptions

_LOG = logging.getLogger("simulator")
_MAX_BODY_BYTES = 512 * 1024 * 1024
_SHUTDOWN_GRACE_SECONDS = 0.5


async def serve(options: SimulatorOptions, ready: Callable[[str], None] | None = None) -> None:
    """Run a simulator until this call is cancelled.

    On cancellation it stops listening, and answers the requests in flight with the text generated
    so far and `finish_reason` "abort", as vLLM does. Then it raises CancelledError.

    Args:
        options: configuration of the simulator.
        ready: called once with the base URL, when the server accepts connections.

    Raises:
        SimulatorError: the port is in use, or the answers file is invalid.

    """
    service = Service(options)
    app = web.Application(middlewares=[_map_errors], client_max_size=_MAX_BODY_BYTES)
    app.add_routes([*Routes(service).table(), *AdminRoutes(service).table()])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_GRACE_SECONDS)
    await runner.setup()
    listener = _listen(options)
    service.stepper.start()
    try:
        site = web.SockSite(runner, listener, backlog=1024)
        await site.start()
        host, port = listener.getsockname()[:2]
        if ready is not None:
            ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        await asyncio.get_running_loop().create_future()
    finally:
        await service.stepper.stop()
        await runner.cleanup()
        listener.close()


def _listen(options: SimulatorOptions) -> socket.socket:
    if options.descriptor is not None:
        return socket.socket(fileno=options.descriptor)
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except OSError as problem:
        listener.close()
        raise SimulatorError(
            f"The simulator cannot listen on {options.host}:{options.port} ({problem.strerror}); "
            "choose another --port, or 0 for a free one."
        ) from problem
    return listener


@web.middleware
async def _map_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
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
        # The caller disconnected, or a fault closed the connection. aiohttp logs a traceback for
        # the error, but it logs nothing for a response that it cannot send.
        return web.Response()
    except Exception as problem:  # noqa: BLE001 - outermost edge: only this request fails
        _LOG.exception("A request failed with an internal error of the simulator; the caller got 500.")
        return json_response(error_for_status(500, f"{type(problem).__name__}: {problem}").body(), 500)
