"""Runs the engine against the real clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from simulator.engine import Delivery, Engine, Generation

_SLEEP_FROM_SECONDS = 0.001
_CATCH_UP_SECONDS = 0.05


class Clockwork:
    """Steps the engine while there is work, no faster than the cost model says.

    It keeps a virtual clock: steps far shorter than a timer's resolution (`--speed 1000`) run back to back until they
    are more than a millisecond ahead of real time, and a late wake-up is made good by the next steps.
    """

    def __init__(self, engine: Engine, on_delivery: Callable[[Delivery, float], None]) -> None:
        self._engine = engine
        self._on_delivery = on_delivery
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin stepping in the running event loop."""
        self._task = asyncio.create_task(self._run(), name="engine steps")

    async def stop(self) -> None:
        """Cut off what is in flight, tell its callers, and stop stepping."""
        for generation in self._engine.cut_off():
            generation.on_done(generation)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def submit(self, generation: Generation) -> None:
        """Queue a generation and wake the engine; raises what `Engine.submit` raises."""
        self._engine.submit(generation, monotonic())
        self._work.set()

    async def _run(self) -> None:
        # Not loop.time(): uvloop's moves in whole milliseconds.
        engine = self._engine
        clock = monotonic()
        while True:
            if engine.idle:
                self._work.clear()
                await self._work.wait()
                clock = max(clock, monotonic())
            clock = max(clock, monotonic() - _CATCH_UP_SECONDS) + engine.plan_step()
            ahead = clock - monotonic()
            await asyncio.sleep(ahead if ahead > _SLEEP_FROM_SECONDS else 0)
            now = monotonic()
            self._on_delivery(engine.finish_step(now), now)
