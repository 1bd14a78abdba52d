"""One HTTP request in the engine: its rows, and the wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.answers import Plan
from simulator.clockwork import Clockwork
from simulator.conversation import Prompt
from simulator.engine import Engine, Generation, Phase, QueueFull
from simulator.errors import queue_overflow
from simulator.metrics import Metrics


@dataclass(slots=True)
class Row:
    """A prompt and the answer planned for it."""

    prompt: Prompt
    plan: Plan


class Rows:
    """The rows of one request while the engine works on them.

    Use it as a context manager: whatever ends the block (an answer, an error, a caller who went away) frees the seats.
    """

    def __init__(self, rows: Sequence[Row], engine: Engine, clockwork: Clockwork, metrics: Metrics) -> None:
        self.rows = rows
        self._engine = engine
        self._clockwork = clockwork
        self._metrics = metrics
        self._generations: list[Generation] = []
        self._places: dict[Generation, int] = {}
        self._unfinished = len(rows)
        self._all_done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._written: asyncio.Queue[tuple[int, int]] = asyncio.Queue()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        for generation in self._generations:
            self._engine.abort(generation)

    def submit(self, priority: int, follow: bool = False) -> None:
        """Queue all rows at once.

        Args:
            priority: lower goes first.
            follow: `written` is going to be called.

        Raises:
            RequestRejected: 503, the queue is full.

        """
        for place, row in enumerate(self.rows):
            prompt = row.prompt
            generation = Generation(
                len(prompt.tokens),
                prompt.keys,
                max(1, len(row.plan.tokens)),
                self._on_done,
                self._on_token if follow else None,
                priority,
            )
            self._places[generation] = place
            try:
                self._clockwork.submit(generation)
            except QueueFull:
                raise queue_overflow() from None
            self._generations.append(generation)

    async def finished(self) -> None:
        """Wait for the last row. Rows that a shutdown cut off have their plan cut to what was written."""
        await self._all_done

    async def written(self) -> tuple[int, int]:
        """The next (row, tokens written so far); raises nothing and never ends by itself."""
        return await self._written.get()

    def _on_token(self, generation: Generation, count: int) -> None:
        self._written.put_nowait((self._places[generation], count))

    def _on_done(self, generation: Generation) -> None:
        place = self._places[generation]
        row = self.rows[place]
        if generation.phase is Phase.ABORTED:
            row.plan = row.plan.cut(generation.produced, "abort")
            self._written.put_nowait((place, generation.produced))
        self._metrics.finished[row.plan.finish_reason] += 1
        self._unfinished -= 1
        if not self._unfinished and not self._all_done.done():
            self._all_done.set_result(None)
