"""One replica of a model as this process sees it: its capabilities, its load, and whether it is used."""

import time
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from pipeline.engine.breaker import Breaker, BreakerState
from pipeline.engine.capabilities import Capabilities
from pipeline.engine.metrics import EngineMetrics
from pipeline.engine.pacing import ConcurrencyLimit, Gauges
from pipeline.engine.prompt_pace import SHORT_TOKENS, PromptPace
from pipeline.models import ModelEntry
from schemas.errors import EngineError, EngineOverloaded, EngineUnavailable, RequestRejected

_CONCURRENT_REQUESTS = 4
SILENT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a request is for an endpoint.

    Attributes:
        prompt_tokens: of all its rows, estimated.
        answer_tokens: at most, of all of them.
    """

    rows: int
    prompt_tokens: int
    answer_tokens: int

    @property
    def tokens(self) -> int:
        """Of prompts and longest answers."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def short(self) -> bool:
        """Whether its rows end with their first tokens."""
        return self.answer_tokens <= SHORT_TOKENS * self.rows


@dataclass(slots=True, eq=False)
class Endpoint:
    """One replica.

    Attributes:
        limit: of rows in flight.
        pace: of prompts, for a lane that gives way to chats; None for the lane that does not.
        capabilities: of the last probe; None before the first one, and after the endpoint was unreachable.
        problem: why the last probe or request failed; None since an answer or a good probe.
        in_flight: rows that this process sent and that are unanswered.
        tokens: of the prompts and longest answers of those rows.
        batch_rows: most rows of one request; halved if the endpoint refuses that many at once.
        metrics: of the engine, at most some seconds old; None if it gives none.
        started_at: when the process of its engine started, as it reports; 0 if it does not.
        progressed_at: when a request last ended, or its engine last read or wrote a token.
        capacity_short_since: since when its capacity is too small for the next request; 0 if it is not.
        rows_done, tokens_done, errors: since the last sample was taken.
    """

    url: str
    limit: ConcurrencyLimit
    pace: PromptPace | None
    batch_rows: int
    breaker: Breaker = field(default_factory=Breaker)
    capabilities: Capabilities | None = None
    probed_at: float = 0.0
    problem: EngineError | None = None
    in_flight: int = 0
    tokens: int = 0
    metrics: EngineMetrics | None = None
    started_at: float = 0.0
    progressed_at: float = 0.0
    capacity_short_since: float = 0.0
    refused_at: float = 0.0
    polled_at: float = 0.0
    doubted_at: float = 0.0
    used_at: float = 0.0
    rows_done: int = 0
    tokens_done: int = 0
    errors: int = 0

    @staticmethod
    def limits_of(entry: ModelEntry, *, gives_way: bool) -> tuple[ConcurrencyLimit, PromptPace | None]:
        """Return limit and pace at an endpoint of an entry, for a lane that gives way to chats or does not."""
        if not gives_way:
            return ConcurrencyLimit(entry.max_num_seqs, None), None
        limit = ConcurrencyLimit(entry.max_num_seqs, entry.interactive_reserve)
        return limit, PromptPace(entry.inter_token_latency_ms / 1000)

    @property
    def state(self) -> BreakerState:
        """The state of its breaker; an endpoint that was never reached is open."""
        return BreakerState.OPEN if self.capabilities is None else self.breaker.state(time.monotonic())

    def used(self, within: float) -> bool:
        """Whether rows are in flight, or were sent within this many seconds."""
        return self.in_flight > 0 or time.monotonic() - self.used_at < within

    @property
    def capacity(self) -> int:
        """Rows that may be sent now."""
        usable = self.state is BreakerState.CLOSED and self.prompt_room > 0
        return self.limit.rows - self.in_flight if usable else 0

    @property
    def prompt_room(self) -> float:
        """Prompt tokens that may be sent now."""
        return self.pace.room(time.monotonic()) if self.pace is not None else inf

    @property
    def paced_for(self) -> float:
        """Seconds until its pace allows another row; 0 if it does now."""
        return self.pace.ready_in(time.monotonic()) if self.pace is not None else 0.0

    @property
    def largest_batch(self) -> int:
        """Most rows of one request; several requests are in flight at once."""
        if self.capabilities is None or not self.capabilities.batch_route:
            return 1
        return max(1, min(self.batch_rows, self.limit.rows // _CONCURRENT_REQUESTS))

    @property
    def silent_seconds(self) -> float:
        """How long nothing was heard of the rows in flight; 0 without any."""
        return time.monotonic() - self.progressed_at if self.in_flight else 0.0

    @property
    def complaint(self) -> str | None:
        """What an operator should know; None if all is well."""
        if self.problem is not None:
            return self.problem.message
        silent = self.silent_seconds
        return (
            f"nothing was answered for {silent:.0f} s, {self.in_flight} rows wait" if silent >= SILENT_SECONDS else None
        )

    def saw_metrics(self, metrics: EngineMetrics | None) -> Gauges | None:
        """Keep what the engine reports now; returns its gauges with what happened since the last report."""
        before, self.metrics = self.metrics, metrics
        if metrics is None:
            return None
        self.started_at = metrics.started_at
        if metrics.tokens is not None and (before is None or metrics.tokens != before.tokens):
            self.progressed_at = time.monotonic()
        if before is None:
            return metrics.gauges
        seconds, count = (now - then for now, then in zip(metrics.between_tokens, before.between_tokens, strict=True))
        return replace(metrics.gauges, token_seconds=seconds / count) if count > 0 and seconds > 0 else metrics.gauges

    def take_sample(self, seconds: float) -> dict[str, Any]:
        """Return figures since the last call, `seconds` ago; counters restart."""
        gauges = self.metrics.gauges if self.metrics else None
        sample = {
            "state": self.state,
            "problem": self.complaint,
            "in_flight": self.in_flight,
            "limit_rows": self.limit.rows,
            "rows_per_second": self.rows_done / seconds,
            "tokens_per_second": self.tokens_done / seconds,
            "errors": self.errors,
            "engine_running": gauges.running if gauges else None,
            "engine_waiting": gauges.waiting if gauges else None,
            "kv_usage": self.metrics.kv_usage if self.metrics else None,
        }
        self.rows_done = self.tokens_done = self.errors = 0
        return sample

    def set_interactive(self, active: bool) -> None:
        """Give way to interactive rows, or stop; both take effect at once."""
        self.limit.set_interactive(active)
        if self.pace is not None:
            self.pace.set_active(active)

    def adjust(self, gauges: Gauges | None, seconds: float, *, has_backlog: bool) -> None:
        """Adjust limit and pace to what the engine reports, `seconds` after the last time."""
        self.limit.update(gauges, self.in_flight, seconds, has_backlog=has_backlog)
        if self.pace is not None:
            self.pace.update(gauges.token_seconds if gauges else None, seconds, has_backlog=has_backlog)

    def begin(self, load: Load) -> None:
        """Account for a request that is sent now."""
        if self.pace is not None:
            self.pace.begin(load.prompt_tokens, time.monotonic(), short=load.short)
        if not self.in_flight:
            self.progressed_at = time.monotonic()
        self.in_flight += load.rows
        self.tokens += load.tokens
        self.used_at = time.monotonic()

    def end(self, load: Load) -> None:
        """Account for the end of a request, however it ended."""
        self.progressed_at = time.monotonic()
        self.in_flight -= load.rows
        self.tokens -= load.tokens
        if self.pace is not None:
            self.pace.end(load.prompt_tokens, short=load.short)

    def lose_batch_route(self) -> None:
        """Send single requests from now on, until a probe finds otherwise: a micro-batch got 404 or 405."""
        if self.capabilities is not None:
            self.capabilities = self.capabilities.without_batch_route()

    def record_success(self, seconds: float, tokens: int, rows: int) -> None:
        """Record a request that was answered; `tokens` are those of all its answers."""
        self.breaker.succeeded()
        self.problem = None
        self.limit.record_latency(seconds, tokens // rows)
        self.rows_done += rows
        self.tokens_done += tokens

    def record_failure(self, error: EngineError, rows: int, sent_at: float) -> None:
        """Record a request that failed as a whole; `sent_at` is on the monotonic clock."""
        self.errors += 1
        now = time.monotonic()
        if not isinstance(error, RequestRejected):
            self.problem = error
        if isinstance(error, EngineOverloaded):
            if sent_at < self.refused_at:
                return  # it was in flight when the first one was refused: the same moment, not another one
            self.refused_at = now
            self.limit.refused()
            self.breaker.refused(now)
            if rows > 1:
                self.batch_rows = max(1, min(self.batch_rows, rows // 2))
        elif isinstance(error, EngineUnavailable):
            self.capabilities = None  # another engine may answer there next
            self.breaker.failed(now, unreachable=True)
        elif not isinstance(error, RequestRejected):
            self.breaker.failed(now, unreachable=False)
