"""The replicas of one model: which to use, how many rows are in flight at each, and what they can do."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pipeline.engine.client import EngineClient
from pipeline.engine.facts import EndpointFacts, ask_facts, first_tokens
from pipeline.kinds.classification import choose_form
from pipeline.models import LabelForm, ModelEntry
from schemas.errors import EngineError, EngineUnavailable

_DOWN_SECONDS = 2.0


@dataclass(slots=True)
class Endpoint:
    """One replica as this process sees it."""

    url: str
    in_flight: int = 0
    down_until: float = 0.0
    batch_route: bool = True
    facts: EndpointFacts | None = None
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


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
        self._freed = asyncio.Event()
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
        """One endpoint's facts, asked when first needed and after it was away."""
        async with endpoint.asking:
            if endpoint.facts is None:
                if endpoint.down_until > time.monotonic():
                    raise EngineUnavailable(f"nobody answers at {endpoint.url}", endpoint=endpoint.url)
                try:
                    endpoint.facts = await ask_facts(self.client, endpoint.url, self.entry.name)
                except EngineError:
                    self.mark_down(endpoint)
                    raise
            return endpoint.facts

    async def form_for(self, words: tuple[str, ...]) -> LabelForm:
        """How to ask for one of these words: what the model entry fixes, or what the endpoint's tokens allow."""
        if self.entry.label_form is not None:
            return self.entry.label_form
        if words not in self._forms:
            tokens = None
            for endpoint in self._ranked(()):
                tokens = await first_tokens(self.client, endpoint.url, self.entry.name, words)
                if tokens is not None:
                    break
            self._forms[words] = choose_form(words, tokens)
        return self._forms[words]

    @asynccontextmanager
    async def use(self, rows: int, avoid: Sequence[str] = ()) -> AsyncIterator[Endpoint]:
        """An endpoint with room for these rows: the least loaded that is not down; `avoid` only if there is no other.

        A request larger than the limit gets in alone.
        """
        while True:
            endpoint = next(
                (e for e in self._ranked(avoid) if e.in_flight == 0 or e.in_flight + rows <= self._limit), None
            )
            if endpoint is not None:
                break
            await self._freed.wait()
        endpoint.in_flight += rows
        try:
            yield endpoint
        finally:
            endpoint.in_flight -= rows
            # Everybody who waits looks again; a new event for those who come later.
            freed, self._freed = self._freed, asyncio.Event()
            freed.set()

    def mark_down(self, endpoint: Endpoint) -> None:
        """Leave an endpoint alone for a moment; what was known of it is asked again."""
        endpoint.down_until = time.monotonic() + _DOWN_SECONDS
        endpoint.facts = None

    def _ranked(self, avoid: Sequence[str]) -> list[Endpoint]:
        now = time.monotonic()
        return sorted(self._endpoints, key=lambda e: (e.url in avoid, e.down_until > now, e.in_flight))


__all__ = ["Endpoint", "EnginePool"]
