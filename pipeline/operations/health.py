"""Check every part of the pipeline. Each finding says what is wrong and what to do."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.broker import QUARANTINE, Notifier, Publisher
from pipeline.engine import Capabilities, EngineClient
from pipeline.engine.capabilities import letters_are_tokens, probe
from pipeline.engine.metrics import poll_metrics
from pipeline.kinds.requests import CompletionRequest, RequestTemplate
from pipeline.models import ModelEntry, Models
from pipeline.store import Database, queries
from schemas.doorbells import Lane, queue_name
from schemas.errors import EndpointRefused, EngineError, EngineTimeout, EngineUnavailable, PipelineError

_PING_SECONDS = 1.0
_LONGEST_SECONDS = 5.0
_PROBE = CompletionRequest(
    RequestTemplate("health", (), {"max_tokens": 1, "temperature": 0.0}, ""), ({"role": "user", "content": "ping"},)
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One part: whether it works, what was found, and what to do if it does not work."""

    part: str
    ok: bool
    seen: str
    advice: str = ""
    latency_ms: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return a JSON object for `--json`."""
        return asdict(self)


async def check(
    database: Database, publisher: Publisher, notifier: Notifier, engine: EngineClient, models: Models
) -> AsyncIterator[Finding]:
    """Check Postgres, Redis, the broker, every endpoint and the workers at once; yields what is known as soon as it is."""
    parts = {"postgres": _postgres(database), "redis": _redis(notifier), "broker": _broker(publisher)}
    parts |= {f"{entry.name} at {url}": _endpoint(engine, entry, url) for entry in models for url in entry.addresses}
    broker_works = True
    for checked in asyncio.as_completed([_bounded(part, work) for part, work in parts.items()]):
        finding = await checked
        broker_works = broker_works and (finding.ok or finding.part != "broker")
        yield finding
    if broker_works:
        for finding in await _workers(publisher, models):
            yield finding


async def _bounded(part: str, work: Awaitable[Finding]) -> Finding:
    try:
        async with asyncio.timeout(_LONGEST_SECONDS):
            return await work
    except TimeoutError:
        advice = "it takes connections and does not answer: it may hang, or be suspended; see its own log"
        return Finding(part, False, f"no answer in {_LONGEST_SECONDS:.0f} s", advice)


async def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    await work()
    return (time.perf_counter() - started) * 1000


async def _postgres(database: Database) -> Finding:
    try:
        latency = await _timed(lambda: queries.queue_states(database))
    except PipelineError as error:
        advice = "start yyc3 up, or set DATABASE_URL to a running Postgres"
        return Finding(
            "postgres", False, error.message, "run: yyc3 db upgrade" if "tables" in error.message else advice
        )
    return Finding("postgres", True, "answers, tables exist", latency_ms=latency)


async def _redis(notifier: Notifier) -> Finding:
    try:
        latency = await _timed(notifier.ping)
    except PipelineError as error:
        return Finding(
            "redis",
            False,
            error.message,
            "start yyc3 up, or set REDIS_URL to a running Redis; no job is lost meanwhile",
        )
    return Finding("redis", True, "answers", latency_ms=latency)


async def _broker(publisher: Publisher) -> Finding:
    try:
        quarantined = await publisher.quarantined()
        latency = await _timed(publisher.quarantined)
    except PipelineError as error:
        advice = "start it, or set BROKER_URL (REDIS_URL if that is not set) to a running one; no job is lost meanwhile"
        return Finding("broker", False, error.message, advice)
    advice = f"inspect the queue {QUARANTINE}, then empty it" if quarantined else ""
    return Finding("broker", True, f"answers, {quarantined} messages in quarantine", advice, latency)


async def _endpoint(engine: EngineClient, entry: ModelEntry, url: str) -> Finding:
    part = f"{entry.name} at {url}"
    name = entry.engine_name
    try:
        capabilities = await probe(engine, url, name, prove=True)
        latency = await _timed(lambda: engine.complete(url, name, _PROBE, parameters=entry.parameters))
        letters = await letters_are_tokens(engine, url, name)
        metrics = await poll_metrics(engine, url, name)
    except EngineError as error:
        return Finding(part, False, error.message, _advice_for(error))
    kind = f"simulator, as vLLM {capabilities.version}" if capabilities.simulated else f"vLLM {capabilities.version}"
    abilities = {
        "micro-batches": capabilities.batch_route,
        capabilities.constraint.replace("_", " "): True,
        "labels by letter": letters,
        "metrics": metrics is not None,
    }
    able = ", ".join(f"{'' if there else 'no '}{what}" for what, there in abilities.items())
    seen = f"{kind}, {capabilities.max_model_len or 'unknown'} tokens of context, {able}"
    return Finding(part, True, seen, _advice(entry, capabilities), latency_ms=latency)


def _advice_for(error: EngineError) -> str:
    """Return what to do next; what the message says already is not said again."""
    if isinstance(error, EndpointRefused):
        return ""
    if isinstance(error, EngineUnavailable) and error.message.endswith("does not answer"):
        return "start vLLM there, set endpoints in models.toml, or run: yyc3 up --simulate"
    if isinstance(error, EngineTimeout):
        return "it takes connections and does not answer: it may hang; see its own log"
    return ""


def _advice(entry: ModelEntry, capabilities: Capabilities) -> str:
    """Return what could be better although nothing is broken."""
    if capabilities.max_model_len is not None and capabilities.max_model_len < entry.max_model_len:
        return f"max_model_len of models.toml is {entry.max_model_len}; the endpoint's {capabilities.max_model_len} is used"
    return ""


async def _workers(publisher: Publisher, models: Models) -> list[Finding]:
    loop = asyncio.get_running_loop()
    inspect = publisher.app.control.inspect(timeout=_PING_SECONDS)
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
            seen = ", ".join(sorted(nodes)) if nodes else "no worker consumes this queue"
            findings.append(Finding(f"workers of {queue}", bool(nodes), seen, advice))
    return findings
