"""When an endpoint is not used, and for how long."""

from pipeline.engine.breaker import Breaker, BreakerState


def test_it_opens_at_once_if_unreachable_and_at_the_third_failure() -> None:
    unreachable, failing = Breaker(), Breaker()
    unreachable.failed(0.0, unreachable=True)
    assert unreachable.state(100.0) is BreakerState.OPEN, "time alone does not close it"
    for second in (0.0, 1.0):
        failing.failed(second, unreachable=False)
        assert failing.state(second) is BreakerState.CLOSED
    failing.succeeded()
    for second in (2.0, 3.0, 4.0):
        failing.failed(second, unreachable=False)
    assert failing.state(4.0) is BreakerState.OPEN
    failing.probed(5.0, answers=True)
    assert failing.state(5.0) is BreakerState.CLOSED


def test_probes_of_a_lost_endpoint_slow_down_to_one_in_four_seconds() -> None:
    breaker = Breaker()
    breaker.failed(0.0, unreachable=True)
    waits = [breaker.until]
    for _ in range(8):
        now = breaker.until
        breaker.probed(now, answers=False)
        waits.append(breaker.until - now)
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert max(waits) == 4.0


def test_an_endpoint_that_fails_after_good_probes_is_left_longer_each_time() -> None:
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
