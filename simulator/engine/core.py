"""Continuous batching: slots, a waiting queue, chunked prefill, and the cost of one step.

The engine has no clock and no event loop: `plan_step` returns how long the next step takes, the
caller waits, and `finish_step` delivers the tokens. Decoding has no cost per token: the number of
tokens of an answer is known when it starts, so the engine only records the step in which each
generation ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush

from simulator.engine.prefix_cache import PrefixCache
from simulator.requests.prompts import BLOCK_TOKENS


class Phase(Enum):
    """Phase of a generation."""

    NEW = "not submitted"
    WAITING = "queued, waits for a slot"
    PREFILL = "has a slot, its prompt is being processed"
    DECODE = "has a slot, generates one token per step"
    DONE = "all its tokens are generated"
    ABORTED = "stopped by its caller or by a shutdown"


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Size and speed of the simulated engine.

    The defaults come from the memory bandwidth and the FLOP/s of an L40 for a model of 6B
    parameters in 16 bit: one read of the weights takes about 15 ms, a prefilled token about 0.1 ms,
    and each running sequence adds its part of the KV cache.
    """

    max_num_seqs: int = 256
    prefill_tokens_per_step: int = 2048
    step_seconds: float = 0.015
    running_sequence_seconds: float = 0.00004
    prefill_token_seconds: float = 0.0001
    speed: float = 1.0
    cache_blocks: int = 50_000
    max_unfinished: int | None = None

    def duration(self, running: int, prefilled_tokens: int) -> float:
        """Return how many seconds one step takes."""
        seconds = (
            self.step_seconds + self.running_sequence_seconds * running + self.prefill_token_seconds * prefilled_tokens
        )
        return seconds / self.speed


@dataclass(slots=True, eq=False)
class Generation:
    """One sequence: a prompt and the number of tokens to generate after it.

    The engine calls `on_done` once, when the generation is finished; after `abort` it does not call
    it. A shutdown calls it for the generations that it aborts. The engine calls `on_token` after
    every step that generated a token of this sequence, with the count so far.
    """

    prompt_tokens: int
    block_keys: Sequence[int]
    output_tokens: int
    on_done: Callable[[Generation], None]
    on_token: Callable[[Generation, int], None] | None = None
    priority: int = 0
    phase: Phase = Phase.NEW
    generated_tokens: int = 0
    submitted_at: float = 0.0
    cached_tokens: int = 0
    tokens_to_prefill: int = 0
    first_step: int = 0


class QueueFull(Exception):  # noqa: N818 - a condition, not a defect
    """There are as many unfinished generations as `max_unfinished` allows."""


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
class StepResult:
    """Result of a finished step.

    Attributes:
        started: generations with their first token.
        finished: generations that are finished.
        continued: how many generations got a token after their first.
    """

    started: list[Generation] = field(default_factory=list)
    finished: list[Generation] = field(default_factory=list)
    continued: int = 0


class Engine:
    """Schedules generations on slots and computes the cost of each step."""

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.cache = PrefixCache(limits.cache_blocks)
        self.totals = EngineTotals()
        self._waiting: list[tuple[int, int, Generation]] = []
        self._waiting_count = 0
        self._arrivals = 0
        self._prefilling: deque[Generation] = deque()
        self._running: set[Generation] = set()
        self._ends_at_step: dict[int, list[Generation]] = {}
        self._streamed: dict[Generation, None] = {}
        self._started: list[Generation] = []
        self._decoding_count = 0
        # A planned step is not delivered yet: a generation that is aborted before `finish_step` did
        # not generate the token of that step.
        self._delivered_step = 0

    @property
    def running(self) -> int:
        """Number of generations that have a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Number of generations that wait for a slot."""
        return self._waiting_count

    @property
    def idle(self) -> bool:
        """Whether no generation is running or waiting."""
        return not self._running and not self._waiting_count

    @property
    def cache_usage(self) -> float:
        """Share of the KV cache that running generations occupy, 0 to 1."""
        step = self.totals.steps
        tokens = sum(one.prompt_tokens + max(0, step - one.first_step) * (one.first_step > 0) for one in self._running)
        return min(1.0, tokens / (self.limits.cache_blocks * BLOCK_TOKENS))

    def submit(self, generation: Generation, now: float) -> None:
        """Queue a generation.

        Raises:
            QueueFull: running and waiting generations together have reached the limit, as vLLM
                counts for `--max-num-queued-reqs`.

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
        """Free its slot or its queue entry immediately; calling again has no effect."""
        if generation.phase in (Phase.DONE, Phase.ABORTED, Phase.NEW):
            return
        self._remove(generation, Phase.ABORTED)
        self.totals.aborted += 1

    def abort_all(self) -> list[Generation]:
        """Abort all unfinished generations, as a server does at shutdown, and return them."""
        unfinished = [*self._running, *(one for _, _, one in self._waiting if one.phase is Phase.WAITING)]
        for generation in unfinished:
            self.abort(generation)
        return unfinished

    def plan_step(self) -> float:
        """Assign free slots, prefill prompts, and return how many seconds the step takes."""
        self.totals.steps += 1
        budget = self.limits.prefill_tokens_per_step
        left = budget
        for _ in range(len(self._prefilling)):
            generation = self._prefilling.popleft()
            if generation.phase is Phase.PREFILL:
                left = self._prefill(generation, left)
        while left > 0 and self._waiting and len(self._running) < self.limits.max_num_seqs:
            generation = heappop(self._waiting)[2]
            if generation.phase is Phase.WAITING:
                self._assign_slot(generation)
                left = self._prefill(generation, left)
        self._drop_aborted_heads()
        return self.limits.duration(len(self._running), budget - left)

    def finish_step(self) -> StepResult:
        """Deliver the tokens of the planned step."""
        step = self._delivered_step = self.totals.steps
        started = [one for one in self._started if one.phase is Phase.DECODE]
        result = StepResult(started, continued=self._decoding_count - len(started))
        self._started.clear()
        self.totals.generated_tokens += self._decoding_count
        for generation in tuple(self._streamed):
            if generation.phase is Phase.DECODE and generation.on_token is not None:
                generation.on_token(generation, step - generation.first_step + 1)
        for generation in self._ends_at_step.pop(step, ()):
            if generation.phase is Phase.DECODE:
                self._remove(generation, Phase.DONE)
                self.totals.finished += 1
                result.finished.append(generation)
                generation.on_done(generation)
        return result

    def _assign_slot(self, generation: Generation) -> None:
        self._waiting_count -= 1
        self._running.add(generation)
        generation.phase = Phase.PREFILL
        generation.cached_tokens = self.cache.match_and_insert(generation.block_keys, generation.prompt_tokens)
        generation.tokens_to_prefill = generation.prompt_tokens - generation.cached_tokens

    def _prefill(self, generation: Generation, left: int) -> int:
        """Prefill as much of a prompt as the step allows; return the rest of its token budget."""
        tokens = min(generation.tokens_to_prefill, left)
        generation.tokens_to_prefill -= tokens
        if generation.tokens_to_prefill:
            self._prefilling.append(generation)
            return left - tokens
        step = self.totals.steps
        generation.phase = Phase.DECODE
        generation.first_step = step
        self.totals.prompt_tokens += generation.prompt_tokens
        self._decoding_count += 1
        self._started.append(generation)
        self._ends_at_step.setdefault(step + generation.output_tokens - 1, []).append(generation)
        if generation.on_token is not None:
            self._streamed[generation] = None
        return left - tokens

    def _remove(self, generation: Generation, phase: Phase) -> None:
        if generation.phase is Phase.WAITING:
            self._waiting_count -= 1
        else:
            self._running.discard(generation)
            if generation.phase is Phase.DECODE:
                self._decoding_count -= 1
                self._streamed.pop(generation, None)
                generation.generated_tokens = self._delivered_step - generation.first_step + 1
        generation.phase = phase

    def _drop_aborted_heads(self) -> None:
        while self._waiting and self._waiting[0][2].phase is not Phase.WAITING:
            heappop(self._waiting)
