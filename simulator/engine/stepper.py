"""Runs the engine against the real clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from simulator.engine.core import Engine, Generation, StepResult

_MIN_SLEEP_SECONDS = 0.001
_MAX_CATCH_UP_SECONDS = 0.05


class EngineStepper:
    """Steps the engine while there is work, at the speed of the cost model.

    It keeps a virtual clock. Steps far shorter than the resolution of a timer (`--speed 1000`) run
    back to back until they are more than a millisecond ahead of real time, and the next steps catch
    up after a late wake-up.
    """

    def __init__(self, engine: Engine, on_step: Callable[[StepResult, float], None]) -> None:
        self._engine = engine
        self._on_step = on_step
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to step in the running event loop."""
        self._task = asyncio.create_task(self._run(), name="engine steps")

    async def stop(self) -> None:
        """Abort all unfinished generations, call their `on_done`, and stop stepping."""
        for generation in self._engine.abort_all():
            generation.on_done(generation)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def submit(self, generation: Generation) -> None:
        """Queue a generation and wake the engine; raises what `Engine.submit` raises."""
        self._engine.submit(generation, monotonic())
        self._work.set()

    async def _run(self) -> None:
        # Not loop.time(): the clock of uvloop advances in whole milliseconds.
        engine = self._engine
        clock = monotonic()
        while True:
            if engine.idle:
                self._work.clear()
                await self._work.wait()
                clock = max(clock, monotonic())
            clock = max(clock, monotonic() - _MAX_CATCH_UP_SECONDS) + engine.plan_step()
            ahead = clock - monotonic()
            await asyncio.sleep(ahead if ahead > _MIN_SLEEP_SECONDS else 0)
            now = monotonic()
            self._on_step(engine.finish_step(), now)
