"""Continuous batching: seats, a waiting queue, chunked prefill, and what one step costs.

No clock and no event loop in here: `plan_step` says how long the next step takes, the caller waits, `finish_step`
delivers. Decoding costs nothing per token: how many tokens an answer has is known when it starts, so the engine only
keeps the step in which each generation ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush

from simulator.prefix_cache import BLOCK_TOKENS, PrefixCache


class Phase(Enum):
    """Where a generation is."""

    NEW = "not submitted"
    WAITING = "has no seat"
    PREFILL = "has a seat, its prompt is being read"
    DECODE = "writes one token a step"
    DONE = "all its tokens are written"
    ABORTED = "stopped by its caller or by a shutdown"


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Size and speed of the engine that is simulated.

    The defaults come from the memory bandwidth and the FLOP/s of an L40 for a model of 6B parameters in 16 bit: reading
    the weights once takes about 15 ms, a prefilled token about 0.1 ms, and a running sequence adds its part of the KV
    cache.
    """

    seats: int = 256
    prefill_tokens_per_step: int = 2048
    step_seconds: float = 0.015
    running_seconds: float = 0.00004
    prefill_token_seconds: float = 0.0001
    speed: float = 1.0
    cache_blocks: int = 50_000
    max_unfinished: int | None = None

    def duration(self, running: int, prefilled_tokens: int) -> float:
        """Seconds one step takes."""
        work = self.step_seconds + self.running_seconds * running + self.prefill_token_seconds * prefilled_tokens
        return work / self.speed


@dataclass(slots=True, eq=False)
class Generation:
    """One sequence: a prompt and the number of tokens to write after it.

    `on_done` is called once, when it is finished or was cut off by a shutdown; never after `abort`. `on_token` is
    called after every step in which it wrote a token, with the count so far.
    """

    prompt_tokens: int
    block_keys: Sequence[int]
    output_tokens: int
    on_done: Callable[[Generation], None]
    on_token: Callable[[Generation, int], None] | None = None
    priority: int = 0
    phase: Phase = Phase.NEW
    produced: int = 0
    submitted_at: float = 0.0
    first_token_at: float = 0.0
    cached_tokens: int = 0
    unread_tokens: int = 0
    first_step: int = 0


class QueueFull(Exception):  # noqa: N818 - a condition, not a defect
    """More unfinished generations than `max_unfinished` allows."""


@dataclass(slots=True)
class EngineTotals:
    """Counters since the start."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    aborted: int = 0
    rejected: int = 0
    steps: int = 0


@dataclass(slots=True)
class Delivery:
    """What a finished step brought: generations with their first token, and generations that ended."""

    started: list[Generation] = field(default_factory=list)
    ended: list[Generation] = field(default_factory=list)


class Engine:
    """Who sits, who waits, and what the next step costs."""

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.cache = PrefixCache(limits.cache_blocks)
        self.totals = EngineTotals()
        self._waiting: list[tuple[int, int, Generation]] = []
        self._waiting_count = 0
        self._arrivals = 0
        self._reading: deque[Generation] = deque()
        self._seated: set[Generation] = set()
        self._ends: dict[int, list[Generation]] = {}
        self._followed: dict[Generation, None] = {}
        self._started: list[Generation] = []
        self._writing = 0
        # A planned step is not delivered yet: who leaves in between has not written its token.
        self._delivered_step = 0

    @property
    def running(self) -> int:
        """Seats taken."""
        return len(self._seated)

    @property
    def waiting(self) -> int:
        """Generations without a seat."""
        return self._waiting_count

    @property
    def idle(self) -> bool:
        """Nothing to do."""
        return not self._seated and not self._waiting_count

    @property
    def cache_usage(self) -> float:
        """Share of the KV cache that running generations hold, 0 to 1."""
        step = self.totals.steps
        held = sum(one.prompt_tokens + max(0, step - one.first_step) * (one.first_step > 0) for one in self._seated)
        return min(1.0, held / (self.limits.cache_blocks * BLOCK_TOKENS))

    def submit(self, generation: Generation, now: float) -> None:
        """Queue a generation.

        Raises:
            QueueFull: the limit counts running and waiting ones, as vLLM's `--max-num-queued-reqs` does.

        """
        limit = self.limits.max_unfinished
        if limit is not None and self.running + self._waiting_count >= limit:
            self.totals.rejected += 1
            raise QueueFull
        generation.phase = Phase.WAITING
        generation.submitted_at = now
        self._arrivals += 1
        self._waiting_count += 1
        heappush(self._waiting, (generation.priority, self._arrivals, generation))

    def abort(self, generation: Generation) -> None:
        """Free its seat or its place in the queue now; calling again changes nothing."""
        if generation.phase in (Phase.DONE, Phase.ABORTED, Phase.NEW):
            return
        self._leave(generation, Phase.ABORTED)
        self.totals.aborted += 1

    def cut_off(self) -> list[Generation]:
        """Abort everything, as a server does that is told to stop; returns what was in flight."""
        cut = [*self._seated, *(one for _, _, one in self._waiting if one.phase is Phase.WAITING)]
        for generation in cut:
            self.abort(generation)
        return cut

    def plan_step(self) -> float:
        """Seat who fits, read prompts, and say how many seconds the step takes."""
        self.totals.steps += 1
        budget = self.limits.prefill_tokens_per_step
        left = budget
        for _ in range(len(self._reading)):
            generation = self._reading.popleft()
            if generation.phase is Phase.PREFILL:
                left = self._read(generation, left)
        while left > 0 and self._waiting and len(self._seated) < self.limits.seats:
            generation = heappop(self._waiting)[2]
            if generation.phase is Phase.WAITING:
                self._seat(generation)
                left = self._read(generation, left)
        self._drop_aborted_heads()
        return self.limits.duration(len(self._seated), budget - left)

    def finish_step(self, now: float) -> Delivery:
        """Deliver the tokens of the planned step."""
        step = self._delivered_step = self.totals.steps
        delivery = Delivery()
        for generation in self._started:
            if generation.phase is Phase.DECODE:
                generation.first_token_at = now
                delivery.started.append(generation)
        self._started.clear()
        self.totals.generated_tokens += self._writing
        for generation in tuple(self._followed):
            if generation.phase is Phase.DECODE and generation.on_token is not None:
                generation.on_token(generation, step - generation.first_step + 1)
        for generation in self._ends.pop(step, ()):
            if generation.phase is Phase.DECODE:
                self._leave(generation, Phase.DONE)
                self.totals.finished += 1
                delivery.ended.append(generation)
                generation.on_done(generation)
        return delivery

    def _seat(self, generation: Generation) -> None:
        self._waiting_count -= 1
        self._seated.add(generation)
        generation.phase = Phase.PREFILL
        generation.cached_tokens = self.cache.claim(generation.block_keys, generation.prompt_tokens)
        generation.unread_tokens = generation.prompt_tokens - generation.cached_tokens

    def _read(self, generation: Generation, left: int) -> int:
        """Read as much of a prompt as this step still can; returns what is left of the step."""
        taken = min(generation.unread_tokens, left)
        generation.unread_tokens -= taken
        if generation.unread_tokens:
            self._reading.append(generation)
            return left - taken
        step = self.totals.steps
        generation.phase = Phase.DECODE
        generation.first_step = step
        self.totals.prompt_tokens += generation.prompt_tokens
        self._writing += 1
        self._started.append(generation)
        self._ends.setdefault(step + generation.output_tokens - 1, []).append(generation)
        if generation.on_token is not None:
            self._followed[generation] = None
        return left - taken

    def _leave(self, generation: Generation, phase: Phase) -> None:
        if generation.phase is Phase.WAITING:
            self._waiting_count -= 1
        else:
            self._seated.discard(generation)
            if generation.phase is Phase.DECODE:
                self._writing -= 1
                self._followed.pop(generation, None)
                generation.produced = self._delivered_step - generation.first_step + 1
        generation.phase = phase

    def _drop_aborted_heads(self) -> None:
        while self._waiting and self._waiting[0][2].phase is not Phase.WAITING:
            heappop(self._waiting)
