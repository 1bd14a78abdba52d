"""When an endpoint is left alone, and for how long. Pure."""

from enum import StrEnum

_FAILURES = 3
_FIRST_SECONDS = 0.5
_LONGEST_SECONDS = 4.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


class BreakerState(StrEnum):
    """How an endpoint stands with this process."""

    CLOSED = "closed"  # it is asked
    PAUSED = "paused"  # it took no more rows a moment ago, and is asked again by itself
    OPEN = "open"  # it is left alone until a probe finds that it answers


class Breaker:
    """Leaves an endpoint alone when nobody answers, or when requests break there three times in a row.

    It does not try the caller's rows on an endpoint to see whether it is back: a probe does. Times are seconds of any
    clock that only goes forward.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._refusals = 0
        self._openings = 0
        self._opened = False
        self._until = 0.0

    def state(self, now: float) -> BreakerState:
        """How the endpoint stands now."""
        if self._opened:
            return BreakerState.OPEN
        return BreakerState.PAUSED if now < self._until else BreakerState.CLOSED

    @property
    def until(self) -> float:
        """When a pause ends, or the next probe is due."""
        return self._until

    def succeeded(self) -> None:
        """A request was answered."""
        self._failures = self._refusals = self._openings = 0

    def failed(self, now: float, *, away: bool) -> None:
        """A request broke; `away` where nobody answered at all."""
        self._failures += 1
        if not self._opened and (away or self._failures >= _FAILURES):
            self._opened = True
            self._wait(now)

    def refused(self, now: float) -> None:
        """It took no more (503): a short pause, doubled while it goes on refusing."""
        self._refusals += 1
        pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(self._refusals - 1, 10), _LONGEST_PAUSE_SECONDS)
        self._until = max(self._until, now + pause)

    def probed(self, now: float, *, answers: bool) -> None:
        """What a probe found."""
        if answers:
            self._opened = False
            self._failures = 0
            self._until = 0.0
        else:
            self._opened = True
            self._wait(now)

    def _wait(self, now: float) -> None:
        self._until = now + min(_FIRST_SECONDS * 2 ** min(self._openings, 10), _LONGEST_SECONDS)
        self._openings += 1


__all__ = ["Breaker", "BreakerState"]
