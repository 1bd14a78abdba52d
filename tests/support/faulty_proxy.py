"""A proxy before an engine, for weather that the engine itself cannot make."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Self

from aiohttp import ClientError, ClientSession, web

Rule = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "content-encoding"}


class Proxy:
    """Passes everything on to an engine, but for paths with a rule of their own. A rule that returns None passes on too."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.rules: dict[str, Rule] = {}
        self.seen: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        self._loop.close()

    def count(self, path: str) -> int:
        """Requests to a path so far."""
        return self.seen.count(path)

    async def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
        async with ClientSession() as self._client:
            self._ready.set()
            await self._end.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
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
                kept = {name: value for name, value in found.headers.items() if name.lower() not in HOP_BY_HOP}
                return web.Response(status=found.status, body=await found.read(), headers=kept)
        except ClientError:
            assert request.transport is not None
            request.transport.close()
            return web.Response()


def always(response: Callable[[], web.Response]) -> Rule:
    """The same answer to every request."""

    async def rule(_: web.Request) -> web.StreamResponse:
        return response()

    return rule
