"""The rows of one HTTP request while the engine works on them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.answers.planner import Plan
from simulator.engine.core import Engine, Generation, Phase, QueueFull
from simulator.engine.metrics import Metrics
from simulator.engine.stepper import EngineStepper
from simulator.errors import queue_full_error
from simulator.requests.prompts import Prompt


@dataclass(slots=True)
class Row:
    """A prompt and the answer planned for it."""

    prompt: Prompt
    plan: Plan


class RequestRows:
    """Submits the rows of one request and waits for them.

    Use it as a context manager: the end of the block frees the slots, after an answer, an error or
    a disconnect of the caller.
    """

    def __init__(self, rows: Sequence[Row], engine: Engine, stepper: EngineStepper, metrics: Metrics) -> None:
        self.rows = rows
        self._engine = engine
        self._stepper = stepper
        self._metrics = metrics
        self._generations: list[Generation] = []
        self._indices: dict[Generation, int] = {}
        self._unfinished = len(rows)
        self._all_done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._progress: asyncio.Queue[tuple[int, int]] = asyncio.Queue()

    def __enter__(self) -> RequestRows:
        return self

    def __exit__(self, *_: object) -> None:
        for generation in self._generations:
            self._engine.abort(generation)

    def submit(self, priority: int, stream: bool = False) -> None:
        """Queue all rows at once.

        Args:
            priority: a lower number is scheduled first.
            stream: whether the caller will use `next_progress`.

        Raises:
            RequestRejected: 503, the queue is full.

        """
        for index, row in enumerate(self.rows):
            prompt = row.prompt
            generation = Generation(
                len(prompt.tokens),
                prompt.block_keys,
                max(1, len(row.plan.tokens)),
                self._on_done,
                self._on_token if stream else None,
                priority,
            )
            self._indices[generation] = index
            try:
                self._stepper.submit(generation)
            except QueueFull:
                raise queue_full_error() from None
            self._generations.append(generation)

    async def wait_finished(self) -> None:
        """Wait for the last row.

        The plan of a row that a shutdown aborted is truncated to the generated tokens.
        """
        await self._all_done

    async def next_progress(self) -> tuple[int, int]:
        """Wait for the next (index of a row, tokens generated so far); does not end by itself."""
        return await self._progress.get()

    def _on_token(self, generation: Generation, count: int) -> None:
        self._progress.put_nowait((self._indices[generation], count))

    def _on_done(self, generation: Generation) -> None:
        index = self._indices[generation]
        row = self.rows[index]
        if generation.phase is Phase.ABORTED:
            row.plan = row.plan.truncate(generation.generated_tokens, "abort")
            self._progress.put_nowait((index, generation.generated_tokens))
        self._metrics.finished[row.plan.finish_reason] += 1
        self._unfinished -= 1
        if not self._unfinished and not self._all_done.done():
            self._all_done.set_result(None)
