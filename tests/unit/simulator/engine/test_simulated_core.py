from __future__ import annotations

from typing import Any

import pytest

from simulator.engine.core import Engine, EngineLimits, Generation, Phase, QueueFull
from simulator.requests.prompts import BLOCK_TOKENS, block_keys


class Run:
    """An engine with a clock that advances only with a step."""

    def __init__(self, **limits: Any) -> None:
        self.engine = Engine(EngineLimits(**limits))
        self.now = 0.0
        self.done: list[Generation] = []

    def submit(self, prompt: int, output: int = 1, priority: int = 0, keys: list[int] | None = None) -> Generation:
        generation = Generation(prompt, keys or [], output, self.done.append, None, priority)
        self.engine.submit(generation, self.now)
        return generation

    def step(self) -> float:
        seconds = self.engine.plan_step()
        self.now += seconds
        self.engine.finish_step()
        return seconds


def test_a_step_costs_its_base_its_sequences_and_its_prompt_tokens() -> None:
    run = Run()
    run.submit(100, 2)
    run.submit(50, 2)
    assert run.step() == pytest.approx(0.015 + 2 * 0.00004 + 150 * 0.0001)
    assert run.step() == pytest.approx(0.015 + 2 * 0.00004)


def test_speed_divides_the_cost_of_a_step() -> None:
    run = Run(speed=10.0)
    run.submit(100)
    assert run.step() == pytest.approx((0.015 + 0.00004 + 0.01) / 10)


def test_an_answer_takes_one_step_per_token() -> None:
    run = Run()
    generation = run.submit(10, 5)
    for _ in range(4):
        run.step()
    assert run.done == []
    run.step()
    assert run.done == [generation]
    assert generation.generated_tokens == 5
    assert run.engine.totals.generated_tokens == 5
    assert run.engine.idle


def test_a_long_prompt_is_prefilled_over_several_steps() -> None:
    run = Run(prefill_tokens_per_step=100)
    long = run.submit(250)
    short = run.submit(60)
    assert run.step() == pytest.approx(0.015 + 1 * 0.00004 + 100 * 0.0001)
    run.step()
    assert (long.phase, short.phase) == (Phase.PREFILL, Phase.WAITING)
    run.step()
    assert (long.phase, short.phase) == (Phase.DONE, Phase.PREFILL)
    run.step()
    assert run.done == [long, short]


def test_a_lower_priority_number_gets_a_slot_first() -> None:
    run = Run(max_num_seqs=1)
    late = run.submit(10, priority=10)
    urgent = run.submit(10, priority=-1)
    normal = run.submit(10, priority=0)
    while not run.engine.idle:
        run.step()
    assert run.done == [urgent, normal, late]


def test_equal_priorities_get_slots_in_order_of_arrival() -> None:
    run = Run(max_num_seqs=1)
    submitted = [run.submit(10) for _ in range(5)]
    while not run.engine.idle:
        run.step()
    assert run.done == submitted


def test_a_running_generation_keeps_its_slot() -> None:
    run = Run(max_num_seqs=1)
    first = run.submit(10, 3, priority=10)
    run.step()
    run.submit(10, priority=-10)
    run.step()
    assert first.phase is Phase.DECODE
    assert run.engine.waiting == 1


def test_at_most_max_num_seqs_generations_run() -> None:
    run = Run(max_num_seqs=4)
    for _ in range(10):
        run.submit(10, 3)
    run.step()
    assert (run.engine.running, run.engine.waiting) == (4, 6)


def test_an_abort_frees_the_slot_and_delivers_nothing() -> None:
    run = Run(max_num_seqs=1)
    first, second = run.submit(10, 100), run.submit(10)
    run.step()
    run.engine.abort(first)
    run.engine.abort(first)
    assert (run.engine.running, run.engine.waiting, run.engine.totals.aborted) == (0, 1, 1)
    run.step()
    assert run.done == [second]


def test_an_abort_in_the_queue_reduces_the_waiting_count() -> None:
    run = Run(max_num_seqs=1)
    run.submit(10, 2)
    waiting = run.submit(10)
    run.step()
    run.engine.abort(waiting)
    assert run.engine.waiting == 0
    run.step()
    assert run.engine.idle


def test_abort_all_records_the_generated_tokens() -> None:
    run = Run()
    generation = run.submit(10, 100)
    for _ in range(3):
        run.step()
    assert run.engine.abort_all() == [generation]
    assert (generation.phase, generation.generated_tokens) == (Phase.ABORTED, 3)


def test_a_token_of_an_unfinished_step_does_not_count() -> None:
    run = Run()
    generation = run.submit(10, 100)
    run.step()
    run.engine.plan_step()
    run.engine.abort_all()
    assert generation.generated_tokens == 1


def test_the_queue_limit_counts_running_and_waiting() -> None:
    run = Run(max_num_seqs=1, max_unfinished=2)
    run.submit(10, 5)
    run.submit(10, 5)
    with pytest.raises(QueueFull):
        run.submit(10)
    assert run.engine.totals.rejected == 1


def test_a_cached_prefix_is_not_prefilled_again() -> None:
    run = Run()
    tokens = [f"t{number}" for number in range(100)]
    keys = block_keys(tokens)
    run.submit(100, keys=keys)
    assert run.step() == pytest.approx(0.015 + 0.00004 + 100 * 0.0001)
    run.submit(100, keys=keys)
    assert run.step() == pytest.approx(0.015 + 0.00004 + (100 - 6 * BLOCK_TOKENS) * 0.0001)
    assert run.engine.cache.hit_tokens == 6 * BLOCK_TOKENS


def test_rows_of_the_same_step_share_their_prefix() -> None:
    run = Run()
    keys = block_keys(["system"] * 64)
    for _ in range(32):
        run.submit(70, keys=keys)
    assert run.step() == pytest.approx(0.015 + 32 * 0.00004 + (70 + 31 * 6) * 0.0001)
