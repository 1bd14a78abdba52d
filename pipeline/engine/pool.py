"""The replicas of one model: which to use, how many rows are in flight at each, and what they can do."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pipeline.engine.client import EngineClient
from pipeline.engine.facts import EndpointFacts, ask_facts, first_tokens
from pipeline.kinds.classification import choose_form, fixed_form
from pipeline.models import LabelForm, ModelEntry
from schemas.errors import EngineError, EngineUnavailable

_DOWN_SECONDS = 2.0
_FACTS_SECONDS = 30.0  # an engine may be replaced behind its address; what its results say must stay true
_KNOWN_FORMS = 1_000


@dataclass(slots=True)
class Endpoint:
    """One replica as this process sees it."""

    url: str
    in_flight: int = 0
    down_until: float = 0.0
    batch_route: bool = True
    facts: EndpointFacts | None = None
    facts_until: float = 0.0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True, eq=False)
class _Waiting:
    """Somebody in line for room; `turn` is given the endpoint with the room reserved."""

    rows: int
    avoid: Sequence[str]
    turn: "asyncio.Future[Endpoint]"


class EnginePool:
    """Hands out endpoints, never more rows in flight at one than its limit.

    Args:
        limit_rows: per endpoint and process; the engine's seats for an interactive lane, a little less for bulk.
    """

    def __init__(self, entry: ModelEntry, client: EngineClient, limit_rows: int) -> None:
        self.entry = entry
        self.client = client
        self._limit = limit_rows
        self._endpoints = [Endpoint(url) for url in entry.addresses]
        self._waiting: deque[_Waiting] = deque()
        self._forms: dict[tuple[str, ...], LabelForm] = {}

    @property
    def replicas(self) -> int:
        """How many endpoints there are."""
        return len(self._endpoints)

    async def facts(self) -> EndpointFacts:
        """What the model's endpoints are; replicas are taken to be alike.

        Raises:
            EngineError: none of them answers; the last one's reason.
        """
        problem: EngineError | None = None
        for endpoint in self._ranked(()):
            try:
                return await self.facts_of(endpoint)
            except EngineError as error:
                problem = error
        assert problem is not None
        raise problem

    async def facts_of(self, endpoint: Endpoint) -> EndpointFacts:
        """One endpoint's facts, asked when first needed, twice a minute and after it was away."""
        async with endpoint.asking:
            if endpoint.facts is None or endpoint.facts_until < time.monotonic():
                if endpoint.down_until > time.monotonic():
                    raise EngineUnavailable(f"nobody answers at {endpoint.url}", endpoint=endpoint.url)
                try:
                    endpoint.facts = await ask_facts(self.client, endpoint.url, self.entry.name)
                except EngineError:
                    self.mark_down(endpoint)
                    raise
                endpoint.facts_until = time.monotonic() + _FACTS_SECONDS
            return endpoint.facts

    async def form_for(self, words: tuple[str, ...]) -> LabelForm:
        """How to ask for one of these words: what the model entry fixes, or what the endpoint's tokens allow."""
        if self.entry.label_form is not None:
            return fixed_form(self.entry.label_form, words)
        if words in self._forms:
            return self._forms[words]
        try:
            tokens = await first_tokens(self.client, self._ranked(())[0].url, self.entry.name, words)
        except EngineError:
            return choose_form(words, None)  # not remembered: the next run asks again
        if len(self._forms) >= _KNOWN_FORMS:
            self._forms.pop(next(iter(self._forms)))
        self._forms[words] = choose_form(words, tokens)
        return self._forms[words]

    @asynccontextmanager
    async def use(self, rows: int, avoid: Sequence[str] = ()) -> AsyncIterator[Endpoint]:
        """An endpoint with room for these rows: the least loaded that is not down; `avoid` only if there is no other.

        First come, first served, so that single rows do not keep a micro-batch waiting. A request larger than the limit
        gets in alone.
        """
        endpoint = None if self._waiting else self._with_room(rows, avoid)
        if endpoint is None:
            endpoint = await self._turn(rows, avoid)
        else:
            endpoint.in_flight += rows
        try:
            yield endpoint
        finally:
            self._release(endpoint, rows)

    async def _turn(self, rows: int, avoid: Sequence[str]) -> Endpoint:
        """Wait in line; whoever frees room reserves it for the first in line."""
        waiting = _Waiting(rows, avoid, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            return await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.done() and not waiting.turn.cancelled():
                self._release(waiting.turn.result(), rows)
            else:
                self._waiting.remove(waiting)
                self._admit()
            raise

    def _release(self, endpoint: Endpoint, rows: int) -> None:
        endpoint.in_flight -= rows
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            endpoint = self._with_room(first.rows, first.avoid)
            if endpoint is None:
                return
            self._waiting.popleft()
            if not first.turn.done():
                endpoint.in_flight += first.rows
                first.turn.set_result(endpoint)

    def _with_room(self, rows: int, avoid: Sequence[str]) -> Endpoint | None:
        return next((e for e in self._ranked(avoid) if e.in_flight == 0 or e.in_flight + rows <= self._limit), None)

    def mark_down(self, endpoint: Endpoint) -> None:
        """Leave an endpoint alone for a moment; what was known of it is asked again."""
        endpoint.down_until = time.monotonic() + _DOWN_SECONDS
        endpoint.facts = None

    def _ranked(self, avoid: Sequence[str]) -> list[Endpoint]:
        now = time.monotonic()
        return sorted(self._endpoints, key=lambda e: (e.url in avoid, e.down_until > now, e.in_flight))


__all__ = ["Endpoint", "EnginePool"]
