"""`yyc3 queues`: depth, throughput and time to empty of each queue, and the state of each endpoint."""

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.broker import QUARANTINE
from pipeline.cli.console import command, out, print_json, table, wiring
from pipeline.operations.queue_status import QueueStatus
from pipeline.operations.queue_status import queue_status as merged
from pipeline.store import endpoint_samples, queries
from pipeline.store.endpoint_samples import EndpointSample
from schemas.doorbells import Lane, queue_name


@command
def queues(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each queue, each endpoint, and the quarantine.")
    ] = False,
) -> None:
    """Show depth, throughput and estimated time to empty of each queue, and the state of each endpoint."""

    async def read() -> tuple[list[QueueStatus], list[EndpointSample], int]:
        async with wiring().adapters() as adapters:
            lanes = [(entry.name, lane) for entry in adapters.models for lane in Lane]
            depths = await adapters.publisher.depths(queue_name(model, lane) for model, lane in lanes)
            states, seen = (
                await queries.queue_states(adapters.database),
                await endpoint_samples.latest(adapters.database),
            )
            quarantined = await adapters.publisher.quarantined()
            return merged(states, {one: depths[queue_name(*one)] for one in lanes}, seen), seen, quarantined

    found, seen, quarantined = asyncio.run(read())
    if as_json:
        for entry in (
            *(queue.as_json() for queue in found),
            *(asdict(sample) for sample in seen),
            {"queue": QUARANTINE, "messages": quarantined},
        ):
            print_json(entry)
        return
    columns = ["queue", "queued", "oldest", "running", "oldest", "in flight", "jobs/s", "empty in", "retry reason"]
    table("queues", columns, [_row(queue) for queue in found])
    if seen:
        columns = ["endpoint", "worker", "breaker", "in flight", "engine", "KV", "tokens/s", "errors"]
        table("endpoints, as the workers saw them in the last seconds", columns, [_sample_row(one) for one in seen])
    for problem in sorted({f"{one.model} at {one.endpoint}: {one.problem}" for one in seen if one.problem}):
        out.print(problem, markup=False, highlight=False)
    if quarantined:
        out.print(
            f"{quarantined:,} messages that could not be processed are in the queue {QUARANTINE}; inspect it, then empty it"
        )


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
