"""`yyc3 queues`: depth, throughput and time to empty of each queue, and the state of each endpoint."""

import asyncio
from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.broker import QUARANTINE
from pipeline.cli.console import command, print_json, say, table, wiring
from pipeline.operations.queue_status import QueueStatus
from pipeline.operations.queue_status import queue_status as merged
from pipeline.store import endpoint_samples, processes, queries
from pipeline.store.endpoint_samples import EndpointSample
from pipeline.store.processes import SeenProcess
from schemas.doorbells import Lane, queue_name
from schemas.intake import INTAKE_QUEUE


@command
def queues(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each queue, endpoint and process.")
    ] = False,
) -> None:
    """Show depth, throughput and estimated time to empty of each queue, the state of each endpoint, and the processes."""

    async def read() -> tuple[list[QueueStatus], list[EndpointSample], list[SeenProcess], dict[str, int]]:
        async with wiring().adapters() as adapters:
            lanes = [(entry.name, lane) for entry in adapters.models for lane in Lane]
            depths = await adapters.publisher.depths(queue_name(model, lane) for model, lane in lanes)
            states, seen = (
                await queries.queue_states(adapters.database),
                await endpoint_samples.latest(adapters.database),
            )
            others = await adapters.publisher.depths([INTAKE_QUEUE])
            others[QUARANTINE] = await adapters.publisher.quarantined()
            merged_states = merged(states, {one: depths[queue_name(*one)] for one in lanes}, seen)
            return merged_states, seen, await processes.seen(adapters.database), others

    found, seen, running, others = asyncio.run(read())
    if as_json:
        for entry in (
            *(queue.as_json() for queue in found),
            *(asdict(sample) for sample in seen),
            *({"process": one.heartbeat.name, **asdict(one.heartbeat), "silent": one.silent} for one in running),
            *({"queue": queue, "messages": messages} for queue, messages in others.items()),
        ):
            print_json(entry)
        return
    columns = ["queue", "queued", "oldest", "running", "longest", "in flight", "jobs/s", "empty in", "retry reason"]
    table("queues", columns, [_row(queue) for queue in found])
    if seen:
        columns = ["endpoint", "worker", "breaker", "in flight", "engine", "KV", "tokens/s", "errors"]
        table("endpoints, as the workers saw them in the last seconds", columns, [_sample_row(one) for one in seen])
    for problem in sorted({f"{one.model} at {one.endpoint}: {one.problem}" for one in seen if one.problem}):
        say(problem)
    say(_processes(running))
    if others[INTAKE_QUEUE]:
        say(f"{others[INTAKE_QUEUE]:,} messages wait in the queue {INTAKE_QUEUE}")
    if quarantined := others[QUARANTINE]:
        say(
            f"{quarantined:,} messages that could not be processed are in the queue {QUARANTINE}; inspect it, then empty it"
        )


def _processes(running: list[SeenProcess]) -> str:
    """Return how many processes of each role are heard of, and which are silent."""
    living = Counter(one.heartbeat.role for one in running if not one.silent)
    counts = ", ".join(f"{count} {role}" for role, count in sorted(living.items())) or "none is heard of"
    silent = [f"{one.heartbeat.name} has been silent since {one.seen_at:%H:%M:%S}" for one in running if one.silent]
    return "; ".join([f"processes: {counts}", *silent])


def _row(queue: QueueStatus) -> list[object]:
    return [
        queue.queue,
        queue.queued_jobs,
        _duration(queue.oldest_seconds),
        queue.running_jobs,
        _duration(queue.oldest_running_seconds),
        queue.in_flight,
        f"{queue.jobs_per_second:,.1f}",
        _duration(queue.seconds_to_empty),
        queue.last_code or "",
    ]


def _sample_row(sample: EndpointSample) -> list[object]:
    running, waiting = sample.engine_running, sample.engine_waiting
    return [
        f"{sample.model} at {sample.endpoint}",
        sample.worker,
        sample.state,
        f"{sample.in_flight} of {sample.limit_rows}",
        "no metrics" if running is None else f"{running:.0f} running, {waiting or 0:.0f} waiting",
        "" if sample.kv_usage is None else f"{sample.kv_usage:.0%}",
        f"{sample.tokens_per_second:,.0f}",
        sample.errors,
    ]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.0f} s"
