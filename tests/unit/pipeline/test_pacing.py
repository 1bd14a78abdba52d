"""How much is in flight: the rule on a model of an engine, and its falls back."""

import heapq
import random
from collections import deque
from collections.abc import Callable

import pytest

from pipeline.engine.breaker import Breaker, BreakerState
from pipeline.engine.metrics import read_metrics
from pipeline.engine.pacing import ConcurrencyLimit, Gauges

MAX_NUM_SEQS = 256
STEP = 0.02


class Aimd:
    """What others do: 8 more a second, less by 30 % when rows wait."""

    def __init__(self) -> None:
        self.rows = 16.0

    def update(self, gauges: Gauges | None, own: int, seconds: float, *, has_backlog: bool) -> None:
        del own, seconds, has_backlog
        assert gauges is not None
        self.rows = max(1.0, self.rows * 0.7 if gauges.waiting > 4 else self.rows + 8)


def occupancy(
    paces: list[ConcurrencyLimit] | list[Aimd],
    *,
    seconds: float = 200,
    late: float = 1.0,
    row_seconds: tuple[float, float] = (0.5, 1.5),
    after: float = 60,
) -> tuple[float, float]:
    """Mean share of taken max_num_seqs and mean rows waiting, after the first minute, with gauges that are `late`."""
    choose = random.Random(7)
    running: list[tuple[float, int]] = []
    waiting: deque[int] = deque()
    own = [0] * len(paces)
    looks = [choose.random() for _ in paces]
    seen: deque[tuple[float, Gauges]] = deque()
    taken = queued = counted = finished = 0
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
        for i, pace in enumerate(paces):
            if now >= looks[i]:
                looks[i] += 1.0
                pace.update(seen[0][1], own[i], 1.0, has_backlog=True)
            while own[i] < int(pace.rows):
                own[i] += 1
                waiting.append(i)
        if now > after:
            taken, queued, counted = taken + len(running), queued + len(waiting), counted + 1
        now += STEP
    return taken / counted / MAX_NUM_SEQS, queued / counted


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_engine_is_full_with_any_number_of_processes_and_hardly_anybody_waits(processes: int) -> None:
    share, waiting = occupancy([ConcurrencyLimit(MAX_NUM_SEQS, 0.125) for _ in range(processes)])
    assert share > 0.99
    assert waiting < 0.35 * MAX_NUM_SEQS, "a quarter of a second: each row takes one"


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_engine_is_full_from_the_beginning_with_long_answers(processes: int) -> None:
    paces = [ConcurrencyLimit(MAX_NUM_SEQS, 0.125) for _ in range(processes)]
    share, _ = occupancy(paces, seconds=60, after=0, row_seconds=(2, 6))
    assert share > 0.98, "what all sent at the start is answered late, and nobody throttles twice for it"


def test_additive_increase_leaves_seats_empty_where_this_rule_does_not() -> None:
    others, _ = occupancy([Aimd() for _ in range(4)])
    assert others < 0.93


def test_too_few_and_too_many_seats_in_the_entry_are_found_out() -> None:
    for named in (64, 1_024):
        share, waiting = occupancy([ConcurrencyLimit(named, 0.125)])
        assert share > 0.97, named
        assert waiting < 0.35 * MAX_NUM_SEQS, "a quarter of a second: each row takes one"


def test_chat_gets_its_seats_at_once_and_gives_them_back_at_once() -> None:
    paces = [ConcurrencyLimit(MAX_NUM_SEQS, 0.125) for _ in range(4)]
    occupancy(paces)
    before = sum(pace.rows for pace in paces)
    for pace in paces:
        pace.set_interactive(True)
        pace.set_interactive(True)  # said again while it is there
    assert sum(pace.rows for pace in paces) <= MAX_NUM_SEQS * 0.875 + 8, "but for what has come since the last look"
    share, waiting = occupancy(paces)
    assert 0.8 < share < 0.89
    assert waiting < 10, "those that came since the last step"
    for pace in paces:
        pace.set_interactive(False)
    assert sum(pace.rows for pace in paces) == before


def test_the_lane_of_chat_does_not_give_way() -> None:
    pace = ConcurrencyLimit(MAX_NUM_SEQS, None)
    pace.set_interactive(True)
    pace.update(Gauges(10, 500, 1), 5, 1.0, has_backlog=True)
    pace.refused()
    assert pace.rows == MAX_NUM_SEQS


def test_a_limit_that_nobody_reaches_does_not_grow() -> None:
    pace = ConcurrencyLimit(MAX_NUM_SEQS, 0.125)
    for second in range(50):
        pace.update(Gauges(20, 0, second), 20, 1.0, has_backlog=False)
    assert pace.rows == MAX_NUM_SEQS * 9 // 8


def asked(pace: ConcurrencyLimit, seconds: float, gauges: Callable[[int], Gauges | None], looks: int = 20) -> int:
    for second in range(looks):
        pace.record_latency(seconds, 100)
        pace.update(gauges(second), pace.rows, 1.0, has_backlog=True)
    return pace.rows


def test_without_gauges_the_latency_decides_and_frozen_gauges_are_none() -> None:
    for gauges in (lambda _: None, lambda _: Gauges(3, 0, 7)):
        pace = ConcurrencyLimit(MAX_NUM_SEQS, 0.125)
        full = asked(pace, 1.0, gauges)
        assert full >= MAX_NUM_SEQS
        slow = asked(pace, 10.0, gauges)
        assert slow < full / 2
        assert asked(pace, 1.0, gauges, 100) >= MAX_NUM_SEQS


def test_a_refusal_takes_a_third_at_once() -> None:
    pace = ConcurrencyLimit(90, 0.125)
    pace.refused()
    assert pace.rows == 60


def test_a_breaker_opens_for_who_is_away_at_once_and_for_who_breaks_the_third_time() -> None:
    away, breaks = Breaker(), Breaker()
    away.failed(0.0, unreachable=True)
    assert away.state(100.0) is BreakerState.OPEN, "time alone does not close it"
    for second in (0.0, 1.0):
        breaks.failed(second, unreachable=False)
        assert breaks.state(second) is BreakerState.CLOSED
    breaks.succeeded()
    for second in (2.0, 3.0, 4.0):
        breaks.failed(second, unreachable=False)
    assert breaks.state(4.0) is BreakerState.OPEN
    breaks.probed(5.0, answers=True)
    assert breaks.state(5.0) is BreakerState.CLOSED


def test_probes_of_a_lost_endpoint_come_less_often_but_at_least_each_four_seconds() -> None:
    breaker = Breaker()
    breaker.failed(0.0, unreachable=True)
    waits = [breaker.until]
    for _ in range(8):
        now = breaker.until
        breaker.probed(now, answers=False)
        waits.append(breaker.until - now)
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert max(waits) == 4.0


def test_an_endpoint_that_probes_well_and_breaks_all_the_same_is_left_alone_longer_each_time() -> None:
    breaker, now, waits = Breaker(), 0.0, []
    for _ in range(4):
        for _ in range(3):
            breaker.failed(now, unreachable=False)
        waits.append(breaker.until - now)
        now = breaker.until
        breaker.probed(now, answers=True)
    assert waits == [0.5, 1.0, 2.0, 4.0]


def test_refusals_pause_and_the_pause_ends_by_itself() -> None:
    breaker = Breaker()
    for _ in range(20):
        breaker.refused(10.0)
    assert breaker.state(10.5) is BreakerState.PAUSED
    assert breaker.state(11.1) is BreakerState.CLOSED


NEW = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_running{engine="0",model_name="other"} 50.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 1.2e+06
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 3.0
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 80.0
"""
OLD = b"vllm:num_requests_running 3\nvllm:num_requests_waiting 0\nvllm:gpu_cache_usage_perc 0.5\n"


def test_gauges_are_read_under_old_and_new_names_and_of_our_model_alone() -> None:
    new, old = read_metrics(NEW, "m"), read_metrics(OLD, "m")
    assert new is not None
    assert old is not None
    assert new.gauges == Gauges(7.0, 2.0, 1_200_003.0)
    assert (new.kv_usage, new.prefix_queries, new.prefix_hits) == (0.25, 100.0, 80.0)
    assert (old.gauges, old.kv_usage, old.prefix_hits) == (Gauges(3.0, 0.0, 0.0), 0.5, None)


@pytest.mark.parametrize(
    "page", [b"", b"<html>", b"vllm:num_requests_running NaN\n", NEW.replace(b"num_requests", b"x")]
)
def test_a_page_without_gauges_is_none(page: bytes) -> None:
    assert read_metrics(page, "m") is None


def test_gauges_that_are_no_numbers_are_none() -> None:
    assert read_metrics(b"vllm:num_requests_running 1e.3\nvllm:num_requests_waiting 0\n", "m") is None
