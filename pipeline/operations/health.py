"""Is everything there? Each finding says in words what is wrong and what to do."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.broker import ASIDE, Bells, Whispers
from pipeline.engine import EndpointFacts, EngineClient
from pipeline.engine.capabilities import ask_facts, letters_are_tokens
from pipeline.engine.metrics import ask_metrics
from pipeline.kinds.requests import Ask, Shape
from pipeline.models import ModelEntry, Models
from pipeline.store import Database, queries
from schemas.doorbells import Lane, queue_name
from schemas.errors import EngineError, PipelineError

_PING_SECONDS = 1.0
_PROBE = Ask(Shape("health", (), {"max_tokens": 1, "temperature": 0.0}, ""), ({"role": "user", "content": "ping"},))


@dataclass(frozen=True, slots=True)
class Finding:
    """One part: whether it works, what was seen, and what to do where it does not."""

    part: str
    ok: bool
    seen: str
    advice: str = ""
    latency_ms: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


async def check(
    database: Database, bells: Bells, whispers: Whispers, engine: EngineClient, models: Models
) -> list[Finding]:
    """Look at Postgres, Redis, the broker, every endpoint and the workers, all at once."""
    endpoints = [_endpoint(engine, entry, url) for entry in models for url in entry.addresses]
    parts = [_postgres(database), _redis(whispers), _broker(bells), *endpoints]
    found = list(await asyncio.gather(*parts))
    broker_works = found[2].ok
    return [*found, *(await _workers(bells, models) if broker_works else [])]


async def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    await work()
    return (time.perf_counter() - started) * 1000


async def _postgres(database: Database) -> Finding:
    try:
        latency = await _timed(lambda: queries.queue_states(database))
    except PipelineError as error:
        advice = "start yyc3 up, or set DATABASE_URL to a Postgres that runs"
        return Finding(
            "postgres", False, error.message, "run: yyc3 db upgrade" if "tables" in error.message else advice
        )
    return Finding("postgres", True, "answers, tables are there", latency_ms=latency)


async def _redis(whispers: Whispers) -> Finding:
    try:
        latency = await _timed(whispers.ping)
    except PipelineError as error:
        return Finding(
            "redis",
            False,
            error.message,
            "start yyc3 up, or set REDIS_URL to a Redis that runs; no job is lost meanwhile",
        )
    return Finding("redis", True, "answers", latency_ms=latency)


async def _broker(bells: Bells) -> Finding:
    try:
        aside = await bells.aside()
        latency = await _timed(bells.aside)
    except PipelineError as error:
        advice = "start it, or set BROKER_URL (REDIS_URL if that is not set) to one that runs; no job is lost meanwhile"
        return Finding("broker", False, error.message, advice)
    advice = f"look at the queue {ASIDE}, then empty it" if aside else ""
    return Finding("broker", True, f"answers, {aside} messages were put aside", advice, latency)


async def _endpoint(engine: EngineClient, entry: ModelEntry, url: str) -> Finding:
    part = f"{entry.name} at {url}"
    try:
        facts = await ask_facts(engine, url, entry.name)
        latency = await _timed(lambda: engine.ask(url, entry.name, _PROBE))
        letters = await letters_are_tokens(engine, url, entry.name)
        metrics = await ask_metrics(engine, url, entry.name)
    except EngineError as error:
        advice = f"start vLLM there, set endpoints in models.toml, or run: yyc3 up --simulate ({error.code})"
        return Finding(part, False, error.message, advice)
    kind = f"simulator, as vLLM {facts.version}" if facts.simulated else f"vLLM {facts.version}"
    abilities = {
        "micro-batches": facts.batch_route,
        facts.constraint.replace("_", " "): True,
        "labels by letter": letters,
        "metrics": metrics is not None,
    }
    able = ", ".join(f"{'' if there else 'no '}{what}" for what, there in abilities.items())
    seen = f"{kind}, {facts.context_tokens or 'unknown'} tokens of context, {able}"
    return Finding(part, True, seen, _advice(entry, facts), latency_ms=latency)


def _advice(entry: ModelEntry, facts: EndpointFacts) -> str:
    """Nothing is broken, but something could be better."""
    if facts.context_tokens is not None and facts.context_tokens < entry.context_tokens:
        return (
            f"models.toml says {entry.context_tokens} tokens of context; the endpoint's {facts.context_tokens} are used"
        )
    return ""


async def _workers(bells: Bells, models: Models) -> list[Finding]:
    loop = asyncio.get_running_loop()
    inspect = bells.app.control.inspect(timeout=_PING_SECONDS)
    queues = await loop.run_in_executor(None, inspect.active_queues) or {}
    served: dict[str, list[str]] = {}
    for node, consumed in queues.items():
        for taken in consumed:
            served.setdefault(taken["name"], []).append(node)
    findings = []
    for entry in models:
        for lane in Lane:
            queue = queue_name(entry.name, lane)
            nodes = served.get(queue, [])
            advice = "" if nodes else f"run: yyc3 worker --lane {lane} --model {entry.name}"
            seen = ", ".join(sorted(nodes)) if nodes else "no worker takes from this queue"
            findings.append(Finding(f"workers of {queue}", bool(nodes), seen, advice))
    return findings


__all__ = ["Finding", "check"]
