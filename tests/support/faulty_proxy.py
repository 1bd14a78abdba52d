"""A proxy in front of an engine, for faults that the engine itself cannot have."""

import asyncio
import math
import ssl
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Self

import orjson
from aiohttp import ClientError, ClientSession, web

CHAT = "/v1/chat/completions"
BATCH = "/v1/chat/completions/batch"
Rule = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "content-encoding"}


class Proxy:
    """Passes every request on to an engine, except for paths with a rule.

    A rule that returns None passes its request on too.
    """

    def __init__(self, target: str, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self._tls = tls
        self.rules: dict[str, Rule] = {}
        self.seen: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self.loop.run_until_complete(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(60)
        self.loop.close()

    def count(self, *paths: str) -> int:
        """Count the requests to these paths so far."""
        return sum(self.seen.count(path) for path in paths)

    async def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._respond)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        async with ClientSession() as self._client:
            self._ready.set()
            await self._end.wait()
        await runner.cleanup()

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request.path)
        rule = self.rules.get(request.path)
        made = await rule(request) if rule else None
        if made is not None:
            return made
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() == "content-type"}
        try:
            async with self._client.request(
                request.method, self.target + request.path, data=body, headers=headers
            ) as found:
                kept = {name: value for name, value in found.headers.items() if name.lower() not in _HOP_BY_HOP}
                return web.Response(status=found.status, body=await found.read(), headers=kept)
        except ClientError:
            return _disconnect(request)


class Gate:
    """A rule that passes requests with a number of rows on, and holds the later ones until more are allowed.

    It keeps an engine in the middle of its work for as long as a test needs. Requests whose caller
    disconnects meanwhile never reach the engine.

    Args:
        proxy: in front of the engine; the gate is the rule of every path that takes rows.
        rows: requests pass until they have this many rows together.
    """

    def __init__(self, proxy: Proxy, rows: int) -> None:
        self._loop = proxy.loop
        self._allowed: float = rows
        self._held: deque[tuple[int, asyncio.Future[None]]] = deque()
        proxy.rules |= {CHAT: self, BATCH: self}

    @property
    def held_rows(self) -> int:
        """Rows of the requests that are held now."""
        return sum(rows for rows, _ in tuple(self._held))

    def allow(self, rows: float) -> None:
        """Pass this many rows more, first those that are held."""
        self._loop.call_soon_threadsafe(self._pass, rows)

    def open(self) -> None:
        """Pass on what is held, and everything that follows."""
        self.allow(math.inf)

    async def __call__(self, request: web.Request) -> web.StreamResponse | None:
        rows = _rows(request.path, await request.read())
        if rows == 0:
            return None  # a probe
        if self._allowed > 0:
            self._allowed -= rows
            return None
        passed: asyncio.Future[None] = self._loop.create_future()
        self._held.append((rows, passed))
        await passed
        return _disconnect(request) if request.transport is None or request.transport.is_closing() else None

    def _pass(self, rows: float) -> None:
        self._allowed += rows
        while self._held and self._allowed > 0:
            held, passed = self._held.popleft()
            self._allowed -= held
            if not passed.done():  # cancelled: the proxy is closing
                passed.set_result(None)


def _rows(path: str, body: bytes) -> int:
    """Count the rows of a request; a probe has none."""
    messages = orjson.loads(body).get("messages", [])
    return len(messages) if path == BATCH else int(bool(messages))


def _disconnect(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.close()
    return web.Response()


def always(response: Callable[[], web.Response]) -> Rule:
    """Return a rule that answers every request alike."""

    async def rule(_: web.Request) -> web.StreamResponse:
        return response()

    return rule
