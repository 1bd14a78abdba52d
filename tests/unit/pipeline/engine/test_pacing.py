"""How many rows are in flight: the control rule on a model of an engine, and what it does without gauges."""

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence

import pytest

from pipeline.engine.pacing import ConcurrencyLimit, Gauges

MAX_NUM_SEQS = 256
STEP = 0.02


class Aimd:
    """Additive increase, multiplicative decrease: 8 more a second, 30 % less while rows wait."""

    def __init__(self) -> None:
        self.rows = 16.0

    def update(self, gauges: Gauges | None, own: int, seconds: float, *, has_backlog: bool) -> None:
        del own, seconds, has_backlog
        assert gauges is not None
        self.rows = max(1.0, self.rows * 0.7 if gauges.waiting > 4 else self.rows + 8)


def occupancy(
    limits: Sequence[ConcurrencyLimit | Aimd],
    *,
    seconds: float = 200,
    late: float = 1.0,
    row_seconds: tuple[float, float] = (0.5, 1.5),
    after: float = 60,
) -> tuple[float, float]:
    """Simulate an engine of 256 sequences that processes with these limits fill.

    Args:
        limits: one a process.
        seconds: of the simulation.
        late: age of the gauges in seconds.
        row_seconds: shortest and longest time of a row.
        after: seconds before anything is counted.

    Returns:
        The mean share of sequences in use, and the mean number of rows that wait.
    """
    choose = random.Random(7)
    running: list[tuple[float, int]] = []
    waiting: deque[int] = deque()
    own = [0] * len(limits)
    polls = [choose.random() for _ in limits]
    seen: deque[tuple[float, Gauges]] = deque()
    in_use = queued = counted = finished = 0
    now = 0.0
    while now < seconds:
        while running and running[0][0] <= now:
            own[heapq.heappop(running)[1]] -= 1
            finished += 1
        while waiting and len(running) < MAX_NUM_SEQS:
            heapq.heappush(running, (now + choose.uniform(*row_seconds), waiting.popleft()))
        seen.append((now, Gauges(len(running), len(waiting), finished)))
        while seen[0][0] < now - late:
            seen.popleft()
        for i, limit in enumerate(limits):
            if now >= polls[i]:
                polls[i] += 1.0
                limit.update(seen[0][1], own[i], 1.0, has_backlog=True)
            while own[i] < int(limit.rows):
                own[i] += 1
                waiting.append(i)
        if now > after:
            in_use, queued, counted = in_use + len(running), queued + len(waiting), counted + 1
        now += STEP
    return in_use / counted / MAX_NUM_SEQS, queued / counted


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_engine_is_full_with_any_number_of_processes_and_few_rows_wait(processes: int) -> None:
    share, waiting = occupancy([ConcurrencyLimit(MAX_NUM_SEQS, 0.125) for _ in range(processes)])
    assert share > 0.99
    assert waiting < 0.35 * MAX_NUM_SEQS, "a quarter of a second: each row takes one"


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_engine_is_full_from_the_beginning_with_long_answers(processes: int) -> None:
    limits = [ConcurrencyLimit(MAX_NUM_SEQS, 0.125) for _ in range(processes)]
    share, _ = occupancy(limits, seconds=60, after=0, row_seconds=(2, 6))
    assert share > 0.98, "the late answers to the first rows do not throttle twice"


def test_additive_increase_leaves_sequences_empty_where_this_rule_does_not() -> None:
    share, _ = occupancy([Aimd() for _ in range(4)])
    assert share < 0.93


def test_a_max_num_seqs_too_low_or_too_high_in_the_entry_is_corrected() -> None:
    for named in (64, 1_024):
        share, waiting = occupancy([ConcurrencyLimit(named, 0.125)])
        assert share > 0.97, named
        assert waiting < 0.35 * MAX_NUM_SEQS, "a quarter of a second: each row takes one"


def test_interactive_demand_reserves_and_releases_slots_at_once() -> None:
    limits = [ConcurrencyLimit(MAX_NUM_SEQS, 0.125) for _ in range(4)]
    occupancy(limits)
    before = sum(limit.rows for limit in limits)
    for limit in limits:
        limit.set_interactive(True)
        limit.set_interactive(True)  # announced again while there is demand
    assert sum(limit.rows for limit in limits) <= MAX_NUM_SEQS * 0.875 + 8, "apart from what came since the last poll"
    share, waiting = occupancy(limits)
    assert 0.8 < share < 0.89
    assert waiting < 10, "those that came since the last step"
    for limit in limits:
        limit.set_interactive(False)
    assert sum(limit.rows for limit in limits) == before


def test_the_interactive_lane_does_not_give_way() -> None:
    limit = ConcurrencyLimit(MAX_NUM_SEQS, None)
    limit.set_interactive(True)
    limit.update(Gauges(10, 500, 1), 5, 1.0, has_backlog=True)
    limit.refused()
    assert limit.rows == MAX_NUM_SEQS


def test_a_limit_that_is_not_reached_does_not_grow() -> None:
    limit = ConcurrencyLimit(MAX_NUM_SEQS, 0.125)
    for second in range(50):
        limit.update(Gauges(20, 0, second), 20, 1.0, has_backlog=False)
    assert limit.rows == MAX_NUM_SEQS * 9 // 8


def limit_after(
    limit: ConcurrencyLimit, seconds: float, gauges: Callable[[int], Gauges | None], polls: int = 20
) -> int:
    """Return the limit after this many polls, in each of which a request took this long."""
    for second in range(polls):
        limit.record_latency(seconds, 100)
        limit.update(gauges(second), limit.rows, 1.0, has_backlog=True)
    return limit.rows


def test_latency_decides_without_gauges_and_with_frozen_gauges() -> None:
    for gauges in (lambda _: None, lambda _: Gauges(3, 0, 7)):
        limit = ConcurrencyLimit(MAX_NUM_SEQS, 0.125)
        full = limit_after(limit, 1.0, gauges)
        assert full >= MAX_NUM_SEQS
        slow = limit_after(limit, 10.0, gauges)
        assert slow < full / 2
        assert limit_after(limit, 1.0, gauges, 100) >= MAX_NUM_SEQS


def test_a_refusal_takes_a_third_at_once() -> None:
    limit = ConcurrencyLimit(90, 0.125)
    limit.refused()
    assert limit.rows == 60
