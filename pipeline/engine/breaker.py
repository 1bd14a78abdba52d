"""A circuit breaker: it decides when an endpoint is not used, and for how long. Pure."""

from enum import StrEnum

_MAX_FAILURES = 3
_FIRST_OPEN_SECONDS = 0.5
_LONGEST_OPEN_SECONDS = 4.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


class BreakerState(StrEnum):
    """Whether a process uses an endpoint."""

    CLOSED = "closed"  # it is used
    PAUSED = "paused"  # it accepted no more rows a moment ago, and is used again after the pause
    OPEN = "open"  # it is not used until a probe succeeds


class Breaker:
    """Opens when an endpoint does not answer, or when three requests in a row fail.

    Rows of callers are not used to test whether the endpoint is back: a probe does that. Times are
    seconds of any clock that only goes forward.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._refusals = 0
        self._openings = 0
        self._opened = False
        self._until = 0.0

    def state(self, now: float) -> BreakerState:
        """Return the state at this time."""
        if self._opened:
            return BreakerState.OPEN
        return BreakerState.PAUSED if now < self._until else BreakerState.CLOSED

    @property
    def until(self) -> float:
        """When a pause ends, or the next probe is due."""
        return self._until

    def succeeded(self) -> None:
        """Record that a request was answered."""
        self._failures = self._refusals = self._openings = 0

    def failed(self, now: float, *, unreachable: bool) -> None:
        """Record that a request failed; `unreachable` if the endpoint did not answer at all."""
        self._failures += 1
        if not self._opened and (unreachable or self._failures >= _MAX_FAILURES):
            self._opened = True
            self._wait(now)

    def refused(self, now: float) -> None:
        """Record that it accepted no more rows (503): a short pause, doubled while it goes on refusing."""
        self._refusals += 1
        pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(self._refusals - 1, 10), _LONGEST_PAUSE_SECONDS)
        self._until = max(self._until, now + pause)

    def probed(self, now: float, *, answers: bool) -> None:
        """Record the result of a probe."""
        if answers:
            self._opened = False
            self._failures = 0
            self._until = 0.0
        else:
            self._opened = True
            self._wait(now)

    def _wait(self, now: float) -> None:
        self._until = now + min(_FIRST_OPEN_SECONDS * 2 ** min(self._openings, 10), _LONGEST_OPEN_SECONDS)
        self._openings += 1
