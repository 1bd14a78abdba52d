"""How many rows one process keeps in flight at one endpoint, so that the engine is full and nobody waits long in it. Pure.

The rule is integral control of vLLM's own gauges, `num_requests_running` and `num_requests_waiting`, which are about a second
old when they are read:

    limit += 0.5 * error * own / (running + waiting)

Without chat the error is what is missing from a short waiting queue: a quarter of a second of what the engine finishes, 8 rows
at least, so that what falls free is taken in the same step. (A fixed number would not do: rows that end with their first
token never fill the seats, the engine reads prompts at its limit while many wait.) While nothing waits, it is what is missing
from the seats of the entry, or a tenth of what runs where the entry names too few. While there is chat, the queue is a
fifth as long, and rows in the engine are at most the seats that bulk may use. Each process takes its own share of the
step, so nobody needs to know how many there are. Additive increase with multiplicative decrease, the usual choice, leaves
a tenth to a third of the seats empty on the same model of an engine (`tests/unit/pipeline/test_pacing.py`).

Without gauges the only sign is the client's own latency, of short answers and per token of longer ones: more than twice the
best of late means a queue. It never takes more than seven eighths of the seats away.
"""

from dataclasses import dataclass

_GAIN = 0.5
_QUEUE_SECONDS, _QUEUE_ROWS = 0.25, 8.0
_QUEUE_UNDER_CHAT = 0.2
_PROBE_SHARE = 0.1
_FIRST_SHARE = 1.125
_HIGHEST_SHARE = 4.0  # of the seats: an entry of models.toml may name too few, but a gauge may also be wrong
_SLOW = 2.0
_SHORT_TOKENS = 8
_LEAST_SHARE = 0.125  # of the seats: latency alone is a weak witness
_BEST_FADES = 1.02  # an engine may become slower for good
_SMOOTHING = 0.3
_FROZEN_LOOKS = 3
_AFTER_REFUSAL = 0.67


@dataclass(frozen=True, slots=True)
class Gauges:
    """What an engine says of itself: rows running and waiting, and rows finished since it started."""

    running: float
    waiting: float
    finished: float


class Pace:
    """The limit of one process at one endpoint.

    Args:
        seats: sequences that the engine runs at once, as models.toml says.
        chat_share: share of the seats that stays free for chat while there is chat, 0 to 1; of a lane that is not to give
            way it is None, and its limit stays at the seats.
    """

    def __init__(self, seats: int, chat_share: float | None) -> None:
        self._seats = seats
        self._chat_share = chat_share
        self._chat = False
        # Without chat, and with it. Bulk begins with a short queue too: as soon as seats fall free somebody is there.
        first = float(seats) if chat_share is None else seats * _FIRST_SHARE
        self._limits = {False: first, True: first}
        self._last: Gauges | None = None
        self._still = 0
        self._finished = 0
        self._latencies = {False: _Latency(), True: _Latency()}  # of short answers, and of longer ones

    @property
    def limit(self) -> int:
        """Rows that may be in flight now, at least 1."""
        return max(1, int(self._limits[self._chat]))

    @property
    def _for_bulk(self) -> float:
        return self._seats * (1.0 - (self._chat_share or 0.0))

    def chat(self, there: bool) -> None:
        """Whether there is chat: its seats are left free at once, and given back at once."""
        if there and not self._chat and self._chat_share is not None:
            # Down to the seats that bulk may use, with what waits in the engine too.
            in_engine = self._last.running + self._last.waiting if self._last else self._seats
            share = min(1.0, self._for_bulk / max(1.0, in_engine))
            self._limits[True] = min(self._limits[False], float(self._seats)) * share
        self._chat = there and self._chat_share is not None

    def took(self, seconds: float, tokens: int) -> None:
        """A request of so many tokens a row was answered in so many seconds."""
        self._finished += 1
        long = tokens > _SHORT_TOKENS
        self._latencies[long].took(seconds / tokens if long else seconds)

    def look(self, gauges: Gauges | None, own: int, seconds: float, *, hungry: bool) -> None:
        """Adjust, about once a second.

        Args:
            gauges: None where the endpoint gave none this time.
            own: rows that this process has in flight there.
            seconds: since the last look.
            hungry: more rows would have been sent if there had been room. A limit that nobody reaches does not grow.
        """
        if self._chat_share is None:
            return
        finished, self._finished = self._finished, 0
        last, self._last = self._last, gauges
        # Some exporters go on saying what was.
        self._still = self._still + 1 if gauges == last and finished else 0
        if gauges is None or self._still >= _FROZEN_LOOKS:
            self._by_latency(hungry)
        else:
            rate = max(0.0, gauges.finished - last.finished) / seconds if last else 0.0
            self._by_gauges(gauges, own, rate, hungry)

    def refused(self) -> None:
        """The endpoint took no more (503): a third less, at once."""
        if self._chat_share is not None:
            self._set(min(self._limits[self._chat], self._seats) * _AFTER_REFUSAL)

    def _set(self, limit: float) -> None:
        self._limits[self._chat] = min(max(1.0, limit), self._seats * _HIGHEST_SHARE)

    def _by_gauges(self, gauges: Gauges, own: int, rate: float, hungry: bool) -> None:
        there = gauges.running + gauges.waiting
        queue = max(_QUEUE_ROWS, _QUEUE_SECONDS * rate) * (_QUEUE_UNDER_CHAT if self._chat else 1.0)
        free = max(self._seats - gauges.running, _PROBE_SHARE * gauges.running)
        error = queue - gauges.waiting if gauges.waiting else max(queue, free)
        if self._chat:
            error = min(error, self._for_bulk - there)
        # What is in flight above the limit comes down by itself: a limit that went on falling meanwhile would be far too low.
        limit = max(self._limits[self._chat], own) if error <= 0 else self._limits[self._chat]
        if error <= 0 or hungry:
            self._set(limit + _GAIN * error * (min(1.0, own / there) if there else 1.0))

    def _by_latency(self, hungry: bool) -> None:
        limit = self._limits[self._chat]
        slow = [latency.slow() for latency in self._latencies.values() if latency.fresh]
        if not slow:
            return
        if any(slow):
            self._set(max(limit * 0.9, min(limit, self._seats * _LEAST_SHARE)))
        elif hungry and limit < self._seats:
            self._set(min(float(self._seats), limit * 1.05 + 1))


class _Latency:
    """Of answers of one sort: what it is of late, and the best that it was."""

    def __init__(self) -> None:
        self.fresh = False
        self._best: float | None = None
        self._now: float | None = None

    def took(self, seconds: float) -> None:
        """Another answer."""
        self.fresh = True
        self._now = seconds if self._now is None else self._now + _SMOOTHING * (seconds - self._now)

    def slow(self) -> bool:
        """Whether it is far from its best, once a look."""
        assert self._now is not None
        self.fresh = False
        self._best = self._now if self._best is None else min(self._best * _BEST_FADES, self._now)
        return self._now > _SLOW * self._best


__all__ = ["Gauges", "Pace"]
