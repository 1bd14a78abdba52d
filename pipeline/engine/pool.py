"""The replicas of one model: which is asked next, and what is known of them."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from typing import Any

import structlog

from pipeline.engine.breaker import BreakerState
from pipeline.engine.capabilities import EndpointFacts, ask_facts, first_tokens
from pipeline.engine.client import EngineClient
from pipeline.engine.endpoint import Endpoint
from pipeline.engine.metrics import ask_metrics
from pipeline.engine.pacing import Pace
from pipeline.kinds.classification import choose_form, fixed_form
from pipeline.models import LabelForm, ModelEntry
from pipeline.observability.logging import fault
from schemas.errors import EngineError

_log = structlog.get_logger(__name__)
_LOOK_SECONDS = 1.0
_USED_LATELY_SECONDS = 5.0
_FACTS_SECONDS = 30.0  # an engine may be replaced behind its address; what its results say must stay true
_REFUSED_SECONDS = 30.0  # a limit of the engine's own is not knocked at again sooner
_KNOWN_FORMS = 1_000
_KNOWN_PREFIXES = 4_096
_EVEN_TOKENS = 8_192
"""An endpoint may have this much more to do than the least loaded and still get rows whose prefix it has read."""


class EnginePool:
    """Knows the endpoints of a model, and names the one that the next rows should go to.

    Args:
        chat_share: share of the seats that this lane leaves to chat while there is chat; None for the lane of chat itself.
    """

    def __init__(self, entry: ModelEntry, client: EngineClient, chat_share: float | None) -> None:
        self.entry = entry
        self.client = client
        self._batch_rows = max(1, min(entry.micro_batch_rows, entry.seats // 8))
        self.endpoints = [Endpoint(url, Pace(entry.seats, chat_share), self._batch_rows) for url in entry.addresses]
        self.hungry = False
        self.on_change: Callable[[], None] = lambda: None
        self.on_available: Callable[[bool], None] = lambda _: None
        self._was_available = True
        self._probing: dict[str, asyncio.Task[None]] = {}
        self._forms: dict[tuple[str, ...], LabelForm] = {}
        self._prefixes: OrderedDict[Hashable, Endpoint] = OrderedDict()

    @property
    def available(self) -> bool:
        """Whether any endpoint is asked, now or in a moment."""
        return any(endpoint.state is not BreakerState.OPEN for endpoint in self.endpoints)

    @property
    def has_room(self) -> bool:
        """Whether any endpoint takes a row now."""
        return any(one.room > 0 for one in self.endpoints)

    @property
    def out(self) -> bool:
        """Whether every endpoint was tried, and none is asked now."""
        return not self._was_available

    def sampled(self, seconds: float) -> dict[str, dict[str, Any]]:
        """What the endpoints did in the seconds since this was asked last, by URL; of those that were used or are out."""
        seen = {}
        for one in self.endpoints:
            if not one.facts_at or (one.state is BreakerState.CLOSED and not one.used(_USED_LATELY_SECONDS + seconds)):
                continue
            gauges = one.metrics.gauges if one.metrics else None
            seen[one.url] = {
                "state": one.state,
                "in_flight": one.in_flight,
                "limit_rows": one.pace.limit,
                "rows_per_second": one.rows_done / seconds,
                "tokens_per_second": one.tokens_done / seconds,
                "errors": one.errors,
                "engine_running": gauges.running if gauges else None,
                "engine_waiting": gauges.waiting if gauges else None,
                "kv_usage": one.metrics.kv_usage if one.metrics else None,
            }
            one.rows_done = one.tokens_done = one.errors = 0
        return seen

    async def facts(self) -> EndpointFacts:
        """What the model's endpoints are; replicas are taken to be alike.

        Raises:
            EngineError: none of them answers; the last one's reason.
        """
        now = time.monotonic()
        if not self.available:
            await asyncio.gather(
                *[self._probe(one) for one in self.endpoints if not one.facts_at or self._probe_due(one, now)]
            )
        for endpoint in sorted(self.endpoints, key=lambda one: one.state is BreakerState.OPEN):
            if endpoint.facts is not None and now - endpoint.facts_at > _FACTS_SECONDS:
                await self._probe(endpoint)  # after a pause somebody else may answer there
            if endpoint.facts is not None:
                return endpoint.facts
        problem = self.endpoints[0].problem
        assert problem is not None, "a probe finds facts or a problem"
        raise problem

    async def form_for(self, words: tuple[str, ...]) -> LabelForm:
        """How to ask for one of these words: what the model entry fixes, or what the endpoint's tokens allow."""
        if self.entry.label_form is not None:
            return fixed_form(self.entry.label_form, words)
        if words in self._forms:
            return self._forms[words]
        url = min(self.endpoints, key=lambda one: (one.state is not BreakerState.CLOSED, one.tokens)).url
        try:
            tokens = await first_tokens(self.client, url, self.entry.name, words)
        except EngineError:
            return choose_form(words, None)  # not remembered: the next run asks again
        if len(self._forms) >= _KNOWN_FORMS:
            self._forms.pop(next(iter(self._forms)))
        self._forms[words] = choose_form(words, tokens)
        return self._forms[words]

    def elsewhere(self, avoid: Collection[str]) -> bool:
        """Whether any endpoint but these is asked, now or in a moment."""
        return any(one.state is not BreakerState.OPEN and one.url not in avoid for one in self.endpoints)

    def choose(self, prefix: Hashable, avoid: Collection[str] = ()) -> Endpoint | None:
        """The endpoint with room and the least to do in tokens, or the one that read the same prefix while loads are even.

        None where there is no room now.
        """
        least: Endpoint | None = None
        for one in self.endpoints:
            if one.room > 0 and one.url not in avoid and (least is None or one.tokens < least.tokens):
                least = one
        if least is None or len(self.endpoints) == 1:
            return least
        known = self._prefixes.get(prefix)
        if (
            known is not None
            and known.room > 0
            and known.url not in avoid
            and known.tokens <= least.tokens + _EVEN_TOKENS
        ):
            least = known
        self._prefixes[prefix] = least
        self._prefixes.move_to_end(prefix)
        if len(self._prefixes) > _KNOWN_PREFIXES:
            self._prefixes.popitem(last=False)
        return least

    def chat(self, there: bool) -> None:
        """Whether somebody chats with this model now."""
        for endpoint in self.endpoints:
            endpoint.pace.chat(there)
        self.on_change()

    def changed(self) -> None:
        """Something came, went or broke: tell those who wait for room, and those who wait for any endpoint at all."""
        if self.available is not self._was_available and all(one.facts_at for one in self.endpoints):
            self._was_available = not self._was_available
            self.on_available(self._was_available)
        self.on_change()

    async def watch(self) -> None:
        """Probe endpoints that are left alone, look at the gauges of those that are used; until cancelled."""
        try:
            while True:
                now = time.monotonic()
                for endpoint in self.endpoints:
                    if self._probe_due(endpoint, now):
                        self._probe(endpoint)
                due = [one for one in self.endpoints if now - one.looked_at >= 0.9 * _LOOK_SECONDS]
                looks = [self._look(one, now) for one in due if one.used(_USED_LATELY_SECONDS)]
                for problem in await asyncio.gather(*looks, return_exceptions=True):
                    if isinstance(problem, Exception):
                        _log.error("an endpoint was not looked at", model=self.entry.name, fault=fault(problem))
                self.on_change()
                await asyncio.sleep(max(0.0, min(self._next_probe(), now + _LOOK_SECONDS) - time.monotonic()))
        finally:
            for task in self._probing.values():
                task.cancel()

    def _probe_due(self, endpoint: Endpoint, now: float) -> bool:
        if self._is_probed(endpoint):
            return False
        if endpoint.state is BreakerState.OPEN:
            return endpoint.facts_at > 0 and now >= endpoint.breaker.until
        return endpoint.used(_USED_LATELY_SECONDS) and now - endpoint.facts_at > _FACTS_SECONDS

    def _next_probe(self) -> float:
        waiting = [one for one in self.endpoints if one.facts_at and not self._is_probed(one)]
        due = [one.breaker.until for one in waiting if one.state is BreakerState.OPEN]
        return max(min(due, default=float("inf")), time.monotonic() + 0.05)

    def _is_probed(self, endpoint: Endpoint) -> bool:
        task = self._probing.get(endpoint.url)
        return task is not None and not task.done()

    def _probe(self, endpoint: Endpoint) -> "asyncio.Task[None]":
        """Ask an endpoint what it is; one probe of it at a time."""
        task = self._probing.get(endpoint.url)
        if task is None or task.done():
            task = self._probing[endpoint.url] = asyncio.create_task(self._ask_facts(endpoint))
        return task

    async def _ask_facts(self, endpoint: Endpoint) -> None:
        was = endpoint.state
        try:
            facts = await ask_facts(self.client, endpoint.url, self.entry.name)
        except EngineError as error:
            endpoint.facts, endpoint.problem = None, error
            endpoint.breaker.probed(time.monotonic(), answers=False)
            if endpoint.facts_at and was is not BreakerState.OPEN:
                _log.warning("endpoint is left out", model=self.entry.name, reason=error.message)
        else:
            endpoint.facts, endpoint.problem = facts, None
            endpoint.breaker.probed(time.monotonic(), answers=True)
            if endpoint.facts_at and was is BreakerState.OPEN:
                _log.info("endpoint is back", model=self.entry.name, endpoint=endpoint.url)
        endpoint.facts_at = time.monotonic()
        self.changed()

    async def _look(self, endpoint: Endpoint, now: float) -> None:
        endpoint.metrics = await ask_metrics(self.client, endpoint.url, self.entry.name)
        gauges = endpoint.metrics.gauges if endpoint.metrics else None
        seconds, endpoint.looked_at = now - endpoint.looked_at, now
        endpoint.pace.look(gauges, endpoint.in_flight, seconds, hungry=self.hungry)
        if now - endpoint.refused_at > _REFUSED_SECONDS:
            endpoint.batch_rows = min(endpoint.batch_rows + 1, self._batch_rows)


__all__ = ["EnginePool"]
