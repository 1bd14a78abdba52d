"""Check every part of the pipeline. Each finding says what is wrong and what to do."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.broker import QUARANTINE, Notifier, Publisher
from pipeline.broker.errors import UnusableQueue, translate_errors
from pipeline.engine import Capabilities, EngineClient
from pipeline.engine.capabilities import letters_are_tokens, probe
from pipeline.engine.metrics import poll_metrics
from pipeline.kinds.requests import CompletionRequest, RequestTemplate
from pipeline.models import ModelEntry, Models
from pipeline.operations.disk import room_in
from pipeline.operations.presence import models_hash
from pipeline.store import Database, processes, queries
from pipeline.store.processes import Role
from schemas.doorbells import Lane, queue_name
from schemas.errors import (
    BrokerUnavailable,
    EndpointRefused,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    ErrorCode,
    PipelineError,
)
from schemas.intake import INTAKE_QUEUE

_PING_SECONDS = 1.0
_LONGEST_SECONDS = 5.0
_RECENTLY = timedelta(hours=1)
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
    database: Database,
    publisher: Publisher,
    notifier: Notifier,
    engine: EngineClient,
    models: Models,
    home: Path | None = None,
) -> AsyncIterator[Finding]:
    """Check Postgres, Redis, the broker, every endpoint and the workers at once; yields what is known as soon as it is.

    `home` is the folder of a `yyc3 up` that runs on this machine: there must be room on its disk.
    """
    parts = {"postgres": _postgres(database), "redis": _redis(notifier), "broker": _broker(publisher)}
    parts |= {"processes": _processes(database, publisher, models), "work": _work(database)}
    parts |= {f"{entry.name} at {url}": _endpoint(engine, entry, url) for entry in models for url in entry.addresses}
    if home is not None:
        parts["disk"] = _disk(home, database)
    failed: set[str] = set()
    for checked in asyncio.as_completed([_bounded(part, work) for part, work in parts.items()]):
        finding = await checked
        failed |= set() if finding.ok else {finding.part}
        yield finding
    if "broker" not in failed:
        away = {one.name for one in models if all(f"{one.name} at {url}" in failed for url in one.addresses)}
        living = set() if "postgres" in failed else await _living_workers(database)
        for finding in await _workers(publisher, models, away, living):
            yield finding


@dataclass(frozen=True, slots=True)
class EndpointFound:
    """An endpoint: whether its model answers there, what was found, and what to do if it does not."""

    model: str
    url: str
    answers: bool
    seen: str
    advice: str = ""


async def endpoints(engine: EngineClient, models: Models) -> list[EndpointFound]:
    """Ask every endpoint at once; takes 5 s at most."""
    asked = [(entry, url) for entry in models for url in entry.addresses]
    found = await asyncio.gather(*[_bounded(url, _endpoint(engine, entry, url)) for entry, url in asked])
    return [
        EndpointFound(entry.name, url, finding.ok, finding.seen, finding.advice)
        for (entry, url), finding in zip(asked, found, strict=True)
    ]


async def _disk(home: Path, database: Database) -> Finding:
    return Finding("disk", *await room_in(home, database))


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


async def _processes(database: Database, publisher: Publisher, models: Models) -> Finding:
    """Find roles without a process, and settings that differ; a silent process that others stand in for is only told."""
    part = "processes"
    try:
        seen = await processes.seen(database)
    except PipelineError as error:
        return Finding(part, False, error.message, "it is known again when Postgres answers")
    try:
        messages = (await publisher.depths([INTAKE_QUEUE]))[INTAKE_QUEUE]
    except PipelineError:
        messages = 0
    living = [one.heartbeat for one in seen if not one.silent]
    roles = Counter(heartbeat.role for heartbeat in living)
    problems: list[tuple[str, str]] = []
    silent = [one for one in seen if one.silent and one.seen_at > datetime.now(UTC) - _RECENTLY]
    told = [
        f"{one.heartbeat.name} has been silent since {one.seen_at:%H:%M:%S}: it hangs or was lost" for one in silent
    ]
    if not roles[Role.RECOVERY]:
        problems.append(("no recovery runs: jobs of lost workers wait, deadlines do not pass", "run: yyc3 recover"))
    if not roles[Role.WORKER] and any(one.heartbeat.role is Role.WORKER for one in silent):
        problems.append(("no worker is heard of", "run: yyc3 worker"))
    if messages and not roles[Role.INTAKE]:
        problems.append((f"no intake runs, and {messages:,} messages wait in {INTAKE_QUEUE}", "run: yyc3 intake"))
    leases = sorted({heartbeat.lease_seconds for heartbeat in living if heartbeat.role in {Role.WORKER, Role.RECOVERY}})
    if len(leases) > 1:
        advice = "set one YYC3_LEASE_SECONDS for all workers and recoveries"
        problems.append(
            (f"workers and recoveries have different leases: {', '.join(f'{one:g} s' for one in leases)}", advice)
        )
    if any(heartbeat.models_hash != models_hash(models) for heartbeat in living):
        problems.append(
            (
                "some processes have other entries of models.toml than this command",
                "restart them, or set YYC3_MODELS_FILE",
            )
        )
    counts = ", ".join(f"{count} {role}" for role, count in sorted(roles.items())) or "none"
    intake = f", {messages:,} messages wait in {INTAKE_QUEUE}" if messages else ""
    found = "; ".join([counts + intake, *told, *(problem for problem, _ in problems)])
    return Finding(part, not problems, found, "; ".join(dict.fromkeys(advice for _, advice in problems)))


async def _work(database: Database) -> Finding:
    """Find jobs that no process works on, and what waits for a person."""
    try:
        stuck, dead, size = await queries.unattended(database)
        waiting = [
            state for state in await queries.queue_states(database) if state.last_code == ErrorCode.NEWER_VERSION
        ]
    except PipelineError as error:
        return Finding("work", False, error.message, "it is known again when Postgres answers")
    seen = f"{dead:,} dead letters, {size / 1e9:.1f} GB in the database"
    problems = [f"{stuck:,} jobs are running and no process holds them"] if stuck else []
    problems += [f"{state.model} {state.lane}: jobs of a newer version of this program wait" for state in waiting]
    advice = "recovery requeues them, or is not running: run yyc3 recover" if stuck else ""
    advice = advice or ("upgrade the workers" if waiting else "yyc3 dead-letters list" if dead else "")
    return Finding("work", not problems, "; ".join([seen, *problems]), advice)


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
    if isinstance(error, EngineUnavailable) and error.message.endswith("does not answer"):
        return "start vLLM there, set endpoints in models.toml, or run: yyc3 up --simulate"
    if isinstance(error, EndpointRefused) and "404" in error.message:
        return "is vLLM there? its base URL, and --served-model-name, must be those of models.toml"
    if isinstance(error, EngineTimeout):
        return "it takes connections and does not answer: it may hang; see its own log"
    return ""


def _advice(entry: ModelEntry, capabilities: Capabilities) -> str:
    """Return what could be better although nothing is broken."""
    if capabilities.max_model_len is not None and capabilities.max_model_len < entry.max_model_len:
        return f"max_model_len of models.toml is {entry.max_model_len}; the endpoint's {capabilities.max_model_len} is used"
    return ""


async def _living_workers(database: Database) -> set[str]:
    """Return the lanes that a worker is heard of in."""
    try:
        seen = await processes.seen(database)
    except PipelineError:
        return set()
    workers = (one.heartbeat.name for one in seen if one.heartbeat.role is Role.WORKER and not one.silent)
    return {name.partition(".")[0] for name in workers}


async def _workers(publisher: Publisher, models: Models, away: set[str], living: set[str]) -> list[Finding]:
    """Find queues that no worker consumes; one whose endpoints are all away is left alone until they are back."""
    loop = asyncio.get_running_loop()
    inspect = publisher.app.control.inspect(timeout=_PING_SECONDS)
    try:
        with translate_errors():
            queues = await loop.run_in_executor(None, inspect.active_queues) or {}
    except (BrokerUnavailable, UnusableQueue) as error:
        reason = error.message if isinstance(error, BrokerUnavailable) else "the message broker refuses a command"
        return [Finding("workers", False, reason, "they are asked through the message broker: see there")]
    served: dict[str, list[str]] = {}
    for node, consumed in queues.items():
        for taken in consumed:
            served.setdefault(taken["name"], []).append(node)
    findings = []
    for entry in models:
        for lane in Lane:
            queue = queue_name(entry.name, lane)
            nodes = served.get(queue, [])
            waits = not nodes and entry.name in away and lane in living
            advice = "" if nodes or waits else f"run: yyc3 worker --lane {lane} --model {entry.name}"
            seen = ", ".join(sorted(nodes)) if nodes else "no worker consumes this queue"
            seen = "its worker waits until the endpoint is back" if waits else seen
            findings.append(Finding(f"workers of {queue}", bool(nodes) or waits, seen, advice))
    return findings
