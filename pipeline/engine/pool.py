"""The replicas of one model: which one is used next, and what is known of them."""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from typing import Any

import structlog

from pipeline.engine.breaker import BreakerState
from pipeline.engine.capabilities import Capabilities, first_tokens, probe
from pipeline.engine.client import EngineClient
from pipeline.engine.endpoint import SILENT_SECONDS, Endpoint
from pipeline.engine.metrics import poll_metrics
from pipeline.kinds.classification import choose_form, fixed_form
from pipeline.models import LabelForm, ModelEntry
from pipeline.observability.logging import safe_error_summary
from schemas.errors import EndpointRefused, EngineError, EngineFailed

_log = structlog.get_logger(__name__)
_POLL_SECONDS = 1.0
_RECENTLY_USED_SECONDS = 5.0
_PROBE_VALID_SECONDS = 30.0  # an engine may be replaced behind its address; what its results say must stay true
_REFUSED_SECONDS = 30.0  # a limit of the engine's own is not tested again sooner
_SILENT_SECONDS_WITHOUT_METRICS = 30.0  # one long answer is silent too, and nothing else shows that the engine works
_SNAPSHOT = re.compile(r"[0-9a-f]{40}")
_KNOWN_FORMS = 1_000
_KNOWN_PREFIXES = 4_096
_EVEN_TOKENS = 8_192
"""An endpoint may have this much more load than the least loaded and still get rows whose prefix it has read."""


def _limits(entry: ModelEntry) -> tuple[float, ...]:
    return entry.max_num_seqs, entry.interactive_reserve, entry.inter_token_latency_ms, entry.micro_batch_rows


class EnginePool:
    """The endpoints of a model, and which one the next rows go to.

    Args:
        entry: of models.toml.
        client: HTTP client.
        gives_way: whether this lane gives way to interactive demand.

    Attributes:
        all_down: whether every endpoint was probed and none is used now.
    """

    def __init__(self, entry: ModelEntry, client: EngineClient, *, gives_way: bool) -> None:
        self.entry = entry
        self.client = client
        self._gives_way = gives_way
        self.endpoints = [self._endpoint(url) for url in entry.addresses]
        self.has_backlog = False
        self.on_change: Callable[[], None] = lambda: None
        self.on_available: Callable[[bool], None] = lambda _: None
        self.on_hung: Callable[[Endpoint], None] = lambda _: None
        self.all_down = False
        self._probing: dict[str, tuple[asyncio.Task[None], bool]] = {}
        self._forms: dict[tuple[str, ...], LabelForm] = {}
        self._prefixes: OrderedDict[Hashable, Endpoint] = OrderedDict()

    def _endpoint(self, url: str) -> Endpoint:
        self.client.use_proxy(url, self.entry.proxy_to(url))
        return Endpoint(url, *Endpoint.limits_of(self.entry, gives_way=self._gives_way), self._batch_rows)

    @property
    def _batch_rows(self) -> int:
        return max(1, min(self.entry.micro_batch_rows, self.entry.max_num_seqs // 8))

    async def update(self, entry: ModelEntry) -> None:
        """Follow a changed entry: requests in flight end where they are, others go where it says when that was probed."""
        before, self.entry = self.entry, entry
        for url in entry.addresses:
            self.client.use_proxy(url, entry.proxy_to(url))
        known = {one.url: one for one in self.endpoints} if _limits(before) == _limits(entry) else {}
        endpoints = [known.get(url) or self._endpoint(url) for url in entry.addresses]
        await asyncio.gather(*[self._run_probe(one, None, prove=False) for one in endpoints if not one.probed_at])
        self.endpoints = endpoints
        self._forms.clear()
        self._prefixes.clear()
        self.notify_changed()

    @property
    def available(self) -> bool:
        """Whether any endpoint is used, now or after a pause."""
        return any(endpoint.state is not BreakerState.OPEN for endpoint in self.endpoints)

    @property
    def has_capacity(self) -> bool:
        """Whether any endpoint accepts a row now."""
        return any(one.capacity > 0 for one in self.endpoints)

    def take_samples(self, seconds: float) -> dict[str, dict[str, Any]]:
        """Return figures since the last call, by URL, of the endpoints that were used or are down; counters restart."""
        samples = {}
        for one in self.endpoints:
            recently = _RECENTLY_USED_SECONDS + seconds
            if not one.probed_at or (one.state is BreakerState.CLOSED and not one.used(recently)):
                continue
            samples[one.url] = one.take_sample(seconds)
        return samples

    async def capabilities(self) -> Capabilities:
        """Return the capabilities of the model's endpoints; replicas are assumed to be alike.

        Raises:
            EngineError: none of them answers; the reason of the first.
        """
        now = time.monotonic()
        if not self.available:
            due = [one for one in self.endpoints if not one.probed_at or self._probe_due(one, now)]
            await asyncio.gather(*[self._await_probe(one) for one in due])
        for endpoint in sorted(self.endpoints, key=lambda one: one.state is BreakerState.OPEN):
            if endpoint.capabilities is not None and now - endpoint.probed_at > _PROBE_VALID_SECONDS:
                await self._await_probe(endpoint)  # after a pause another engine may answer there
            if endpoint.capabilities is not None:
                return endpoint.capabilities
        problem = self.endpoints[0].problem
        assert problem is not None, "a probe finds capabilities or a problem"
        raise problem

    def revision_of(self, capabilities: Capabilities) -> str:
        """Return a name for the weights that answer now: two with the same name give the same answers.

        The entry may name it, and a path of a hub's snapshot has the hash of the weights. Anything else
        may be other weights at the same place after a restart, so each start of an engine counts as others.
        """
        root = capabilities.revision or ""
        if self.entry.revision is not None:
            return self.entry.revision
        if _SNAPSHOT.search(root):
            return root
        return f"{root} since {max(endpoint.started_at for endpoint in self.endpoints)}"

    async def form_for(self, words: tuple[str, ...]) -> LabelForm:
        """Return how to ask for one of these words: what the entry fixes, or what the endpoint's tokens allow."""
        if self.entry.label_form is not None:
            return fixed_form(self.entry.label_form, words)
        if words in self._forms:
            return self._forms[words]
        url = min(self.endpoints, key=lambda one: (one.state is not BreakerState.CLOSED, one.tokens)).url
        try:
            tokens = await first_tokens(self.client, url, self.entry.engine_name, words)
        except EngineError:
            return choose_form(words, None)  # not remembered: the next run asks again
        if len(self._forms) >= _KNOWN_FORMS:
            self._forms.pop(next(iter(self._forms)))
        self._forms[words] = choose_form(words, tokens)
        return self._forms[words]

    def has_alternative(self, excluded: Collection[str]) -> bool:
        """Whether any endpoint but these is used, now or after a pause."""
        return any(one.state is not BreakerState.OPEN and one.url not in excluded for one in self.endpoints)

    def choose(self, prefix: Hashable, excluded: Collection[str] = ()) -> Endpoint | None:
        """Return the endpoint with capacity and the least load in tokens, or the one that read the prefix if loads are even.

        None where no endpoint has capacity now.
        """
        least: Endpoint | None = None
        for one in self.endpoints:
            if one.capacity > 0 and one.url not in excluded and (least is None or one.tokens < least.tokens):
                least = one
        if least is None or len(self.endpoints) == 1:
            return least
        known = self._prefixes.get(prefix)
        if (
            known is not None
            and known.capacity > 0
            and known.url not in excluded
            and known.tokens <= least.tokens + _EVEN_TOKENS
        ):
            least = known
        self._prefixes[prefix] = least
        self._prefixes.move_to_end(prefix)
        if len(self._prefixes) > _KNOWN_PREFIXES:
            self._prefixes.popitem(last=False)
        return least

    def set_interactive(self, active: bool) -> None:
        """Reserve slots for interactive rows of this model, or release them."""
        for endpoint in self.endpoints:
            endpoint.set_interactive(active)
        self.on_change()

    def notify_changed(self) -> None:
        """Call `on_change` after any change of load, and `on_available` if the model became available or unavailable."""
        if self.available is self.all_down and all(one.probed_at for one in self.endpoints):
            self.all_down = not self.all_down
            self.on_available(not self.all_down)
        self.on_change()

    async def watch(self) -> None:
        """Probe endpoints that are down, and poll the gauges of those in use, until cancelled."""
        try:
            while True:
                now = time.monotonic()
                for endpoint in self.endpoints:
                    if self._probe_due(endpoint, now):
                        self._probe(endpoint)
                await self._poll_used(now)
                for endpoint in self.endpoints:
                    if self._is_silent(endpoint):
                        self._give_up_if_hung(endpoint)
                self.on_change()
                await asyncio.sleep(max(0.0, min(self._next_probe(), now + _POLL_SECONDS) - time.monotonic()))
        finally:
            for task, _ in self._probing.values():
                task.cancel()

    async def _poll_used(self, now: float) -> None:
        due = [one for one in self.endpoints if now - one.polled_at >= 0.9 * _POLL_SECONDS]
        polls = [self._poll(one, now) for one in due if one.used(_RECENTLY_USED_SECONDS)]
        for problem in await asyncio.gather(*polls, return_exceptions=True):
            if isinstance(problem, Exception):
                _log.error("an endpoint was not polled", model=self.entry.name, fault=safe_error_summary(problem))

    def _is_silent(self, endpoint: Endpoint) -> bool:
        limit = SILENT_SECONDS if endpoint.metrics is not None else _SILENT_SECONDS_WITHOUT_METRICS
        return endpoint.silent_seconds > limit and time.monotonic() - endpoint.doubted_at > limit

    def _give_up_if_hung(self, endpoint: Endpoint) -> None:
        """Probe an endpoint of which nothing is heard; if the probe fails too, its requests end now, at no cost to the jobs."""
        endpoint.doubted_at = time.monotonic()

        def probed(_: "asyncio.Task[None]") -> None:
            if endpoint.state is BreakerState.OPEN:
                self.on_hung(endpoint)

        self._probe(endpoint, prove=True).add_done_callback(probed)

    def _probe_due(self, endpoint: Endpoint, now: float) -> bool:
        if self._is_probed(endpoint):
            return False
        if endpoint.state is BreakerState.OPEN:
            return endpoint.probed_at > 0 and now >= endpoint.breaker.until
        return endpoint.used(_RECENTLY_USED_SECONDS) and now - endpoint.probed_at > _PROBE_VALID_SECONDS

    def _next_probe(self) -> float:
        waiting = [one for one in self.endpoints if one.probed_at and not self._is_probed(one)]
        due = [one.breaker.until for one in waiting if one.state is BreakerState.OPEN]
        return max(min(due, default=float("inf")), time.monotonic() + 0.05)

    def _is_probed(self, endpoint: Endpoint) -> bool:
        task, _ = self._probing.get(endpoint.url, (None, False))
        return task is not None and not task.done()

    async def judge(self, endpoint: Endpoint, error: EngineError) -> EngineError:
        """Return whose fault a refusal was: if a probe is answered, not the endpoint's (a firewall dislikes the job)."""
        if not isinstance(error, EndpointRefused):
            return error
        await asyncio.shield(self._probe(endpoint, prove=True))
        if endpoint.state is BreakerState.OPEN:
            return endpoint.problem if isinstance(endpoint.problem, EndpointRefused) else error
        return EngineFailed(f"{error.message}; it answers other requests", endpoint=endpoint.url)

    def _probe(self, endpoint: Endpoint, *, prove: bool = False) -> "asyncio.Task[None]":
        """Start a probe of an endpoint, or return the one in progress; work that failed is asked for again."""
        prove = prove or (endpoint.probed_at > 0 and endpoint.state is BreakerState.OPEN)
        task, proves = self._probing.get(endpoint.url, (None, False))
        if task is None or task.done() or (prove and not proves):
            task = asyncio.create_task(self._run_probe(endpoint, task, prove=prove))
            self._probing[endpoint.url] = task, prove
        return task

    async def _await_probe(self, endpoint: Endpoint) -> None:
        """Wait for a probe, which other runs may wait for too: cancelling one of them does not cancel it."""
        await asyncio.shield(self._probe(endpoint))

    async def _run_probe(self, endpoint: Endpoint, before: "asyncio.Task[None] | None", *, prove: bool) -> None:
        if before is not None:
            await asyncio.wait({before})
        was = endpoint.state
        try:
            found = await probe(self.client, endpoint.url, self.entry.engine_name, prove=prove)
            endpoint.saw_metrics(await poll_metrics(self.client, endpoint.url, self.entry.engine_name))
        except EngineError as error:
            endpoint.capabilities, endpoint.problem = None, error
            endpoint.breaker.probed(time.monotonic(), answers=False)
            if endpoint.probed_at and was is not BreakerState.OPEN:
                _log.warning("endpoint is down", model=self.entry.name, reason=error.message)
        else:
            endpoint.capabilities, endpoint.problem = found, None
            endpoint.breaker.probed(time.monotonic(), answers=True)
            if endpoint.probed_at and was is BreakerState.OPEN:
                _log.info("endpoint is back", model=self.entry.name, endpoint=endpoint.url)
        endpoint.probed_at = time.monotonic()
        self.notify_changed()

    async def _poll(self, endpoint: Endpoint, now: float) -> None:
        gauges = endpoint.saw_metrics(await poll_metrics(self.client, endpoint.url, self.entry.engine_name))
        seconds, endpoint.polled_at = now - endpoint.polled_at, now
        endpoint.adjust(gauges, seconds, has_backlog=self.has_backlog)
        if now - endpoint.refused_at > _REFUSED_SECONDS:
            endpoint.batch_rows = min(endpoint.batch_rows + 1, self._batch_rows)
