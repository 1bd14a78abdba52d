"""`yyc3 jobs`: show, list and cancel jobs."""

from typing import Annotated

import typer

from pipeline.cli.console import AsJson, Exit, command, out, print_json, table
from pipeline.cli.rendering import print_outcome
from pipeline.client import Client
from schemas.ids import JobId
from schemas.results import JobState

jobs = typer.Typer(help="Show, list and cancel jobs.", no_args_is_help=True)


@jobs.command("show")
@command
def show(job_id: int, as_json: AsJson = False) -> None:
    """Print everything known about a job."""
    with Client() as client:
        print_outcome(JobId(job_id), client.get(JobId(job_id)), as_json)


@jobs.command("list")
@command
def list_jobs(
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind.")] = None,
    limit: Annotated[int, typer.Option(help="Most jobs.", min=1, max=10_000)] = 20,
    as_json: AsJson = False,
) -> None:
    """List the newest jobs, newest first."""
    with Client() as client:
        found = client.list_jobs(state=state, kind=kind, limit=limit)
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
    """Settle a job as cancelled; an answer that arrives later is discarded."""
    with Client() as client:
        done = client.cancel(JobId(job_id))
    if as_json:
        print_json({"job_id": job_id, "cancelled": done})
    else:
        out.print(f"job {job_id} is cancelled" if done else f"job {job_id} was settled before")
    if not done:
        raise typer.Exit(Exit.SOME_FAILED)
