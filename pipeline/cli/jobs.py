"""`yyc3 jobs`: show, list, find and cancel jobs."""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from pipeline.cli.console import (
    AsJson,
    command,
    print_json,
    say,
    table,
    tag_of,
    tell,
    with_database,
    with_options,
)
from pipeline.cli.exit_codes import Exit
from pipeline.cli.language import translated
from pipeline.cli.rendering import print_history, print_outcome
from pipeline.cli.times import TIMES, instant, when
from pipeline.client import Client
from pipeline.store import Database, batches, job_records
from pipeline.store.job_records import HistoryEvent, JobFilter, JobRecord
from schemas.errors import InvalidSetting, JobNotFound
from schemas.ids import batch_id as as_batch_id
from schemas.ids import job_id as as_job_id
from schemas.jobs import job_models
from schemas.results import JobState

jobs = typer.Typer(help="Show, list, find and cancel jobs.", no_args_is_help=True)
JobNumber = Annotated[int, typer.Argument(help="Number of the job.")]
Limit = Annotated[int, typer.Option(help="Most jobs.", min=1, max=10_000)]


@dataclass(frozen=True)
class FilterOptions:
    """Which jobs."""

    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind.")] = None
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None
    batch: Annotated[int | None, typer.Option(help="Only of this batch.")] = None
    worker: Annotated[
        str | None, typer.Option(help="Only those that a worker ran last whose name begins like this.")
    ] = None
    crashed: Annotated[bool, typer.Option("--crashed", help="Only jobs whose worker was lost while it held them.")] = (
        False
    )
    since: Annotated[str | None, typer.Option(help=f"Submitted since: {TIMES}.")] = None
    until: Annotated[str | None, typer.Option(help="Submitted before; as --since.")] = None

    def filter(self, key: str | None = None, tags: list[str] | None = None) -> JobFilter:
        """Return the filter of the store."""
        for option in ("kind", "model", "tenant", "worker"):
            if getattr(self, option) == "":
                raise InvalidSetting(f"--{option}: is empty; leave it out to select all")
        return JobFilter(
            state=self.state,
            kind=self.kind,
            model=self.model,
            tenant=self.tenant,
            batch_id=None if self.batch is None else as_batch_id(self.batch),
            key=key,
            tags=dict(tag_of(one) for one in tags or ()),
            worker=self.worker,
            crashed=self.crashed,
            since=instant("--since", self.since),
            until=instant("--until", self.until),
        )


@jobs.command("show")
@command
def show(job_id: JobNumber, as_json: AsJson = False) -> None:
    """Print everything known about a job: its answer, who submitted it when, and its history."""
    number = as_job_id(job_id)

    async def read(database: Database) -> tuple[list[JobRecord], list[HistoryEvent]]:
        found = await job_records.records_of(database, [number])
        return found, await job_records.history(database, number)

    found, events = with_database(read)
    if not found:
        raise JobNotFound(f"there is no job {job_id}", job_id=job_id)
    if as_json:
        print_json(found[0].as_json() | {"history": [asdict(event) for event in events]})
        return
    print_outcome(number, found[0].outcome, as_json=False)
    for name, value in _facts(found[0]):
        tell(f"{translated(name):<10} {value}", style="dim")
    if len(events) > 1:
        print_history(job_id, events)


def _facts(record: JobRecord) -> list[tuple[str, object]]:
    batch = record.batch_id and f"{record.batch_id} ({record.batch_name}), position {record.position}"
    facts = [
        ("submitted", when(record.submitted_at)),
        ("deadline", when(record.deadline) if record.deadline else None),
        ("tenant", record.tenant),
        ("batch", batch),
        ("key", record.idempotency_key),
        ("tags", ", ".join(f"{name}={value}" for name, value in record.tags.items())),
        ("priority", record.priority),
        ("worker", record.worker),
        ("crashes", record.crashes),
    ]
    return [(name, value) for name, value in facts if value]


@jobs.command("list")
@command
@with_options(FilterOptions)
def list_jobs(limit: Limit = 20, as_json: AsJson = False, *, options: FilterOptions) -> None:
    """List the newest jobs, newest first."""
    _print_found(options.filter(), limit, as_json)


@jobs.command("find")
@command
@with_options(FilterOptions)
def find(
    key: Annotated[str | None, typer.Option("--key", help="Idempotency key, of the job or of its batch.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="NAME=VALUE, such as call_id=c17; repeat it.")] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
    *,
    options: FilterOptions,
) -> None:
    """Find jobs by their key or tags. By tags alone, the newest million jobs are searched; --since or --batch reach further."""
    if not key and not tag:
        raise InvalidSetting("give --key or --tag; yyc3 jobs list has the other filters")
    _print_found(options.filter(key, tag), limit, as_json)


def _print_found(selected: JobFilter, limit: int, as_json: bool) -> None:
    kinds = [model.model_fields["kind"].default for model in job_models()]
    if selected.kind not in {None, *kinds}:
        raise InvalidSetting(f"--kind: there is no kind {selected.kind}; known are {', '.join(kinds)}")

    async def read(database: Database) -> list[JobRecord]:
        records = await job_records.find_jobs(database, selected, limit)
        if not records and selected.batch_id is not None:
            await batches.batch_progress(database, selected.batch_id)  # says if there is none
        return records

    found = with_database(read)
    if as_json:
        for record in found:
            print_json(record.as_json())
    elif found:
        columns = ["job", "kind", "state", "model", "submitted", "took", "tenant", "batch", "worker", "code"]
        table("jobs", columns, [_row(record) for record in found])
    else:
        say("no jobs" if selected == JobFilter() else "no jobs match")


def _row(record: JobRecord) -> list[object]:
    outcome = record.outcome
    took = outcome.timings.total_seconds
    return [
        str(record.outcome.job_id),
        outcome.kind,
        outcome.state,
        outcome.model or "",
        when(record.submitted_at),
        f"{took:.3f} s" if took is not None else "",
        record.tenant,
        str(record.batch_id or ""),
        record.worker or "",
        outcome.error.code if outcome.error else "",
    ]


@jobs.command("cancel")
@command
def cancel(job_id: JobNumber, as_json: AsJson = False) -> None:
    """Settle a job as cancelled; an answer that arrives later is discarded."""
    with Client() as client:
        done = client.cancel(as_job_id(job_id))
    if as_json:
        print_json({"job_id": job_id, "cancelled": done})
    else:
        say(f"job {job_id} is cancelled" if done else f"job {job_id} was settled before")
    if not done:
        raise typer.Exit(Exit.SOME_FAILED)
