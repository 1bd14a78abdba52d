"""One replica of a model as this process sees it: what it is, how much it has to do, and whether it is asked at all."""

import time
from dataclasses import dataclass, field

from pipeline.engine.breaker import Breaker, BreakerState
from pipeline.engine.capabilities import EndpointFacts
from pipeline.engine.metrics import EngineMetrics
from pipeline.engine.pacing import Pace
from schemas.errors import EngineError, EngineOverloaded, EngineUnavailable, RequestRejected

_REQUESTS_AT_ONCE = 4


@dataclass(slots=True, eq=False)
class Endpoint:
    """One replica.

    Attributes:
        facts: what the last probe found; None until there was one.
        problem: why it could not be used when it was last probed.
        in_flight: rows that this process waits for.
        tokens: of the prompts and longest answers of those rows.
        batch_rows: most rows of one request; halved where the endpoint refuses that many at once.
        metrics: the engine's own figures, at most some seconds old; None where it gives none.
        narrow_since: since when its room is too small for the next request; 0 where it is not.
        rows_done, tokens_done, errors: since the last sample was taken.
    """

    url: str
    pace: Pace
    batch_rows: int
    breaker: Breaker = field(default_factory=Breaker)
    facts: EndpointFacts | None = None
    facts_at: float = 0.0
    problem: EngineError | None = None
    in_flight: int = 0
    tokens: int = 0
    metrics: EngineMetrics | None = None
    narrow_since: float = 0.0
    refused_at: float = 0.0
    looked_at: float = 0.0
    used_at: float = 0.0
    rows_done: int = 0
    tokens_done: int = 0
    errors: int = 0

    @property
    def state(self) -> BreakerState:
        """How it stands with this process; one that was never reached is open."""
        return BreakerState.OPEN if self.facts is None else self.breaker.state(time.monotonic())

    def used(self, within: float) -> bool:
        """Whether rows are in flight, or were sent within so many seconds."""
        return self.in_flight > 0 or time.monotonic() - self.used_at < within

    @property
    def room(self) -> int:
        """Rows that may be sent now."""
        return self.pace.limit - self.in_flight if self.state is BreakerState.CLOSED else 0

    @property
    def largest_batch(self) -> int:
        """Most rows of one request: while one is answered there are others."""
        if self.facts is None or not self.facts.batch_route:
            return 1
        return max(1, min(self.batch_rows, self.pace.limit // _REQUESTS_AT_ONCE))

    def lose_batch_route(self) -> None:
        """It answered 404 or 405 to a micro-batch: single requests from now on, until a probe finds otherwise."""
        if self.facts is not None:
            self.facts = self.facts.without_batch_route()

    def answered(self, seconds: float, tokens: int, rows: int) -> None:
        """A request of so many rows was answered; `tokens` are those of all its answers."""
        self.breaker.succeeded()
        self.pace.took(seconds, tokens // rows)
        self.rows_done += rows
        self.tokens_done += tokens

    def broke(self, error: EngineError, rows: int, sent_at: float) -> None:
        """A request of so many rows failed as a whole; `sent_at` on the monotonic clock."""
        self.errors += 1
        now = time.monotonic()
        if isinstance(error, EngineOverloaded):
            if sent_at < self.refused_at:
                return  # it was under way when the first was refused: the same moment, not another one
            self.refused_at = now
            self.pace.refused()
            self.breaker.refused(now)
            if rows > 1:
                self.batch_rows = max(1, min(self.batch_rows, rows // 2))
        elif isinstance(error, EngineUnavailable):
            self.facts = None  # who answers there next may be somebody else
            self.problem = error
            self.breaker.failed(now, away=True)
        elif not isinstance(error, RequestRejected):
            self.breaker.failed(now, away=False)


__all__ = ["Endpoint"]
