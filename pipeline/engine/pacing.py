"""How many rows one process keeps in flight at one endpoint, so that the engine is full and no row waits long in it. Pure.

The rule is integral control of vLLM's own gauges, `num_requests_running` and `num_requests_waiting`,
which are about a second old when they are read:

    limit += 0.5 * error * own / (running + waiting)

Without interactive demand the error is what is missing from a short waiting queue: a quarter of a
second of what the engine finishes, at least 8 rows, so that a free slot is filled in the same step. (A
fixed number would not do: rows that end with their first token never fill `max_num_seqs`, because the
engine reads prompts at its limit while many rows wait.) While no row waits, the error is what is
missing from `max_num_seqs` of the entry, or a tenth of what runs if the entry names too few. With
interactive demand the queue is a fifth as long, and the rows in the engine are at most those that bulk
may use. Each process takes its own share of the step, so none needs to know how many there are.
Additive increase with multiplicative decrease, the usual choice, leaves a tenth to a third of the slots
empty on the same model of an engine (`tests/unit/pipeline/engine/test_pacing.py`).

Without gauges the only sign is the client's own latency, of short answers and per token of longer ones:
more than twice the best of recent times means a queue. It never takes away more than seven eighths.
"""

from dataclasses import dataclass

_GAIN = 0.5
_QUEUE_SECONDS, _QUEUE_ROWS = 0.25, 8.0
_QUEUE_UNDER_DEMAND = 0.2
_PROBE_SHARE = 0.1
_FIRST_SHARE = 1.125
_HIGHEST_SHARE = 4.0  # of max_num_seqs: an entry of models.toml may name too few, but a gauge may also be wrong
_SLOW = 2.0
_SHORT_TOKENS = 8
_LOWEST_SHARE = 0.125  # of max_num_seqs: latency alone is weak evidence
_BEST_FADES = 1.02  # an engine may become slower permanently
_SMOOTHING = 0.3
_FROZEN_POLLS = 3
_AFTER_REFUSAL = 0.67


@dataclass(frozen=True, slots=True)
class Gauges:
    """What an engine reports.

    Attributes:
        running, waiting: rows.
        finished: rows since it started.
        token_seconds: between two tokens of an answer, the mean since the last poll; None if there were none.
    """

    running: float
    waiting: float
    finished: float
    token_seconds: float | None = None


class ConcurrencyLimit:
    """The limit of one process at one endpoint.

    Args:
        max_num_seqs: sequences that the engine runs at once, as in models.toml.
        interactive_reserve: share of them that stays free under interactive demand, 0 to 1; None for
            the interactive lane, which does not give way and keeps its limit at `max_num_seqs`.
    """

    def __init__(self, max_num_seqs: int, interactive_reserve: float | None) -> None:
        self._max_num_seqs = max_num_seqs
        self._reserve = interactive_reserve
        self._demand = False
        # Without demand, and with it. Bulk begins with a short queue too: a slot that becomes free is filled at once.
        first = float(max_num_seqs) if interactive_reserve is None else max_num_seqs * _FIRST_SHARE
        self._limits = {False: first, True: first}
        self._last: Gauges | None = None
        self._frozen_polls = 0
        self._finished = 0
        self._latencies = {False: _Latency(), True: _Latency()}  # of short answers, and of longer ones

    @property
    def rows(self) -> int:
        """Rows that may be in flight now, at least 1."""
        return max(1, int(self._limits[self._demand]))

    @property
    def _for_bulk(self) -> float:
        return self._max_num_seqs * (1.0 - (self._reserve or 0.0))

    def set_interactive(self, active: bool) -> None:
        """Reserve slots for interactive rows, or release them; both take effect at once."""
        if active and not self._demand and self._reserve is not None:
            # Down to the slots that bulk may use, including what waits in the engine.
            in_engine = self._last.running + self._last.waiting if self._last else self._max_num_seqs
            share = min(1.0, self._for_bulk / max(1.0, in_engine))
            self._limits[True] = min(self._limits[False], float(self._max_num_seqs)) * share
        self._demand = active and self._reserve is not None

    def record_latency(self, seconds: float, tokens: int) -> None:
        """Record a request: how long it took, and the tokens of each of its rows."""
        self._finished += 1
        long = tokens > _SHORT_TOKENS
        self._latencies[long].record(seconds / tokens if long else seconds)

    def update(self, gauges: Gauges | None, own: int, seconds: float, *, has_backlog: bool) -> None:
        """Adjust the limit, about once a second.

        Args:
            gauges: None if the endpoint gave none this time.
            own: rows that this process has in flight there.
            seconds: since the last update.
            has_backlog: whether more rows would have been sent with a higher limit; a limit that is
                not reached does not grow.
        """
        if self._reserve is None:
            return
        finished, self._finished = self._finished, 0
        last, self._last = self._last, gauges
        # Some exporters repeat old values.
        self._frozen_polls = self._frozen_polls + 1 if gauges == last and finished else 0
        if gauges is None or self._frozen_polls >= _FROZEN_POLLS:
            self._by_latency(has_backlog)
        else:
            rate = max(0.0, gauges.finished - last.finished) / seconds if last else 0.0
            self._by_gauges(gauges, own, rate, has_backlog)

    def refused(self) -> None:
        """The endpoint accepted no more rows (503): a third less, at once."""
        if self._reserve is not None:
            self._set(min(self._limits[self._demand], self._max_num_seqs) * _AFTER_REFUSAL)

    def _set(self, limit: float) -> None:
        self._limits[self._demand] = min(max(1.0, limit), self._max_num_seqs * _HIGHEST_SHARE)

    def _by_gauges(self, gauges: Gauges, own: int, rate: float, has_backlog: bool) -> None:
        in_engine = gauges.running + gauges.waiting
        queue = max(_QUEUE_ROWS, _QUEUE_SECONDS * rate) * (_QUEUE_UNDER_DEMAND if self._demand else 1.0)
        free = max(self._max_num_seqs - gauges.running, _PROBE_SHARE * gauges.running)
        error = queue - gauges.waiting if gauges.waiting else max(queue, free)
        if self._demand:
            error = min(error, self._for_bulk - in_engine)
        # Rows in flight above the limit drain by themselves: a limit that kept falling meanwhile would be far too low.
        limit = max(self._limits[self._demand], own) if error <= 0 else self._limits[self._demand]
        if error <= 0 or has_backlog:
            self._set(limit + _GAIN * error * (min(1.0, own / in_engine) if in_engine else 1.0))

    def _by_latency(self, has_backlog: bool) -> None:
        limit = self._limits[self._demand]
        slow = [latency.is_slow() for latency in self._latencies.values() if latency.fresh]
        if not slow:
            return
        if any(slow):
            self._set(max(limit * 0.9, min(limit, self._max_num_seqs * _LOWEST_SHARE)))
        elif has_backlog and limit < self._max_num_seqs:
            self._set(min(float(self._max_num_seqs), limit * 1.05 + 1))


class _Latency:
    """The recent latency of one class of answers, and the best so far."""

    def __init__(self) -> None:
        self.fresh = False
        self._best: float | None = None
        self._recent: float | None = None

    def record(self, seconds: float) -> None:
        """Add an answer."""
        self.fresh = True
        recent = self._recent
        self._recent = seconds if recent is None else recent + _SMOOTHING * (seconds - recent)

    def is_slow(self) -> bool:
        """Whether it is more than twice the best; called once an update."""
        assert self._recent is not None
        self.fresh = False
        self._best = self._recent if self._best is None else min(self._best * _BEST_FADES, self._recent)
        return self._recent > _SLOW * self._best
