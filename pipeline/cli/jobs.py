"""`yyc3 jobs`: look at jobs, cancel one. `yyc3 queues`: what waits."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

import typer

from pipeline.cli.console import Exit, command, out, print_json, table, wiring
from pipeline.cli.outcome import print_outcome
from pipeline.client import Client
from pipeline.store import reading
from pipeline.store.reading import QueueState
from schemas.ids import JobId
from schemas.messages import Lane, queue_name
from schemas.results import JobState

jobs = typer.Typer(help="Look at jobs.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@jobs.command("show")
@command
def show(job_id: int, as_json: AsJson = False) -> None:
    """Everything known about a job."""
    with Client() as client:
        print_outcome(JobId(job_id), client.look(JobId(job_id)), as_json)


@jobs.command("list")
@command
def list_jobs(
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind.")] = None,
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=10_000)] = 20,
    as_json: AsJson = False,
) -> None:
    """The newest jobs first."""
    with Client() as client:
        found = client.recent(state=state, kind=kind, limit=limit)
    if as_json:
        for outcome in found:
            print_json(outcome)
        return
    rows = [
        [
            str(outcome.job_id),
            outcome.kind,
            outcome.state,
            outcome.model or "",
            f"{outcome.timings.total_seconds:.3f} s" if outcome.timings.total_seconds is not None else "",
            outcome.error.code if outcome.error else "",
        ]
        for outcome in found
    ]
    table("jobs", ["job", "kind", "state", "model", "took", "code"], rows)


@jobs.command("cancel")
@command
def cancel(job_id: int, as_json: AsJson = False) -> None:
    """Settle a job as cancelled; an answer that comes later is thrown away."""
    with Client() as client:
        done = client.cancel(JobId(job_id))
    if as_json:
        print_json({"job_id": job_id, "cancelled": done})
    else:
        out.print(f"job {job_id} is cancelled" if done else f"job {job_id} was settled already")
    if not done:
        raise typer.Exit(Exit.SOME_FAILED)


@command
def queues(as_json: AsJson = False) -> None:
    """What waits and runs, by model and lane; the last column says why something waits for another try."""

    async def look() -> tuple[list[QueueState], dict[str, int]]:
        async with wiring().adapters() as adapters:
            names = [queue_name(entry.name, lane) for entry in adapters.models for lane in Lane]
            return await reading.queue_states(adapters.database), await adapters.bells.depths(names)

    states, depths = asyncio.run(look())
    by_queue = {queue_name(state.model, Lane(state.lane)): state for state in states}
    if as_json:
        for queue, messages in depths.items():
            found = by_queue.get(queue)
            print_json({"queue": queue, "messages": messages, **(vars_of(found) if found else {})})
        return
    now = datetime.now(UTC)
    rows = []
    for queue, messages in depths.items():
        found = by_queue.get(queue)
        age = f"{(now - found.oldest_at).total_seconds():.0f} s" if found and found.oldest_at else ""
        counts = [found.queued_jobs, found.running_jobs] if found else [0, 0]
        rows.append([queue, *counts, age, messages, found.last_code or "" if found else ""])
    table("queues", ["queue", "jobs queued", "jobs running", "oldest", "messages", "waits for"], rows)


def vars_of(state: QueueState) -> dict[str, object]:
    """The fields of a queue's state."""
    return {name: getattr(state, name) for name in QueueState.__slots__}


__all__ = ["jobs", "queues"]
