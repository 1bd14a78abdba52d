"""`yyc3 jobs`: look at jobs, cancel one."""

from typing import Annotated

import typer

from pipeline.cli.console import Exit, command, out, print_json, table
from pipeline.cli.rendering import print_outcome
from pipeline.client import Client
from schemas.ids import JobId
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


__all__ = ["jobs"]
