"""`yyc3 dead-letters`: list, show, replay and discard jobs that failed for good."""

from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import Annotated, TypeVar

import typer
from rich.progress import Progress as Bar

from pipeline.cli.console import AsJson, command, err, print_json, say, table, tell, with_database, with_options
from pipeline.cli.exit_codes import Exit
from pipeline.cli.language import translated
from pipeline.cli.rendering import print_history
from pipeline.cli.times import TIMES, instant, when
from pipeline.operations.dead_letters import JOBS_PER_SECOND, DecisionProgress
from pipeline.operations.dead_letters import discard as discard_all
from pipeline.operations.dead_letters import replay as replay_all
from pipeline.store import Database, dead_letters, job_records
from pipeline.store.dead_letters import DeadLetter, DeadLetterFilter, DeadLetterGroup
from schemas.errors import ErrorCode, InvalidSetting, JobNotFound
from schemas.ids import batch_id as as_batch_id
from schemas.ids import job_id as as_job_id

app = typer.Typer(help="Jobs that failed for good: list, show, replay, discard.", no_args_is_help=True)
T = TypeVar("T")


@dataclass(frozen=True)
class FilterOptions:
    """Which dead letters; shared by all commands."""

    code: Annotated[
        ErrorCode | None, typer.Option(metavar="CODE", help="Only with this code, such as request_rejected.")
    ] = None
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None
    batch: Annotated[int | None, typer.Option(help="Only of this batch.")] = None
    job: Annotated[int | None, typer.Option(help="Only this job.")] = None
    since: Annotated[str | None, typer.Option(help=f"Failed since: {TIMES}.")] = None
    until: Annotated[str | None, typer.Option(help="Failed before; as --since.")] = None

    def filter(self) -> DeadLetterFilter:
        """Return the filter of the store."""
        return DeadLetterFilter(
            job_id=None if self.job is None else as_job_id(self.job),
            batch_id=None if self.batch is None else as_batch_id(self.batch),
            code=self.code,
            model=self.model,
            tenant=self.tenant,
            since=instant("--since", self.since),
            until=instant("--until", self.until),
        )


@dataclass(frozen=True)
class DecisionOptions(FilterOptions):
    """Which dead letters to decide about."""

    everything: Annotated[
        bool, typer.Option("--all", help="Select every dead letter; required if no other filter is given.")
    ] = False

    def required_filter(self) -> DeadLetterFilter:
        """Return the filter; refuse an empty one without --all."""
        selected = self.filter()
        if selected.selects_all and not self.everything:
            raise InvalidSetting(
                "no filter: give --code, --model, --tenant, --batch, --job, --since or --until; or --all"
            )
        return selected


@app.command("list")
@command
@with_options(FilterOptions)
def list_letters(
    each: Annotated[bool, typer.Option("--each", help="One line for each job, not for each code and model.")] = False,
    limit: Annotated[int, typer.Option(help="With --each: most jobs, newest first.", min=1, max=10_000)] = 20,
    as_json: AsJson = False,
    *,
    options: FilterOptions,
) -> None:
    """Count dead letters by code and model."""
    selected = options.filter()
    if each:
        letters = with_database(lambda database: dead_letters.list_dead_letters(database, selected, limit))
        columns = ["job", "kind", "model", "code", "attempts", "failed at", "reason"]
        _print(letters, columns, _letter_row, selected, as_json)
        return
    groups = with_database(lambda database: dead_letters.group_dead_letters(database, selected))
    columns = ["code", "model", "jobs", "first", "last", "newest job", "meaning"]
    _print(groups, columns, _group_row, selected, as_json)
    if groups and not as_json:
        say("yyc3 dead-letters show JOB prints a history; replay runs them again, discard hides them")


def _print(
    found: list[T],
    columns: list[str],
    row: Callable[[T], list[object]],
    selected: DeadLetterFilter,
    as_json: bool,
) -> None:
    if as_json:
        for one in found:
            print_json(asdict(one))  # type: ignore[call-overload]
    elif found:
        table("dead letters", columns, [row(one) for one in found])
    else:
        say("no dead letters" if selected.selects_all else "no dead letters match")


def _letter_row(one: DeadLetter) -> list[object]:
    failed_at = when(one.settled_at)
    return [
        str(one.job_id),
        one.kind,
        one.model or "",
        one.code,
        one.attempts,
        failed_at,
        translated(one.message or ""),
    ]


def _group_row(one: DeadLetterGroup) -> list[object]:
    first, last = when(one.first_at), when(one.last_at)
    return [one.code, one.model or "", one.jobs, first, last, str(one.newest_job), translated(one.code.meaning)]


@app.command("show")
@command
def show(job_id: Annotated[int, typer.Argument(help="Number of the job.")], as_json: AsJson = False) -> None:
    """Print the history of a job: failed attempts, outcomes, decisions."""
    number = as_job_id(job_id)
    found = with_database(lambda database: job_records.history(database, number))
    if not found:
        known = with_database(lambda database: job_records.records_of(database, [number]))
        raise JobNotFound(f"job {job_id} has no history yet" if known else f"there is no job {job_id}")
    if as_json:
        for one in found:
            print_json(asdict(one))
        return
    print_history(job_id, found)


@app.command("replay")
@command
@with_options(DecisionOptions)
def replay(
    per_second: Annotated[
        float, typer.Option(help="Jobs a second, so that new jobs continue beside it.", min=0.1, max=1_000_000)
    ] = JOBS_PER_SECOND,
    as_json: AsJson = False,
    *,
    options: DecisionOptions,
) -> None:
    """Run dead letters again, each with its next replay number. Ctrl-C leaves the rest as it is."""
    selected = options.required_filter()
    done = _decide(
        "replayed", selected, lambda database: replay_all(database, selected, per_second=per_second), as_json
    )
    if done.left and not as_json:
        say(f"{done.left:,} are past their deadline, or were decided about meanwhile")
    done.exit()


@app.command("discard")
@command
@with_options(DecisionOptions)
def discard(as_json: AsJson = False, *, options: DecisionOptions) -> None:
    """Discard dead letters: they stay failed and are no longer listed."""
    selected = options.required_filter()
    _decide("discarded", selected, lambda database: discard_all(database, selected), as_json).exit()


@dataclass
class _Done:
    """What was decided, of how many."""

    total: int = 0
    decided: int = 0
    busy: int = 0

    @property
    def left(self) -> int:
        return self.total - self.decided - self.busy

    def exit(self) -> None:
        """Exit with a failure if no dead letter was decided about."""
        if not self.decided:
            raise typer.Exit(Exit.SOME_FAILED)


def _decide(
    decision: str,
    selected: DeadLetterFilter,
    pages: Callable[[Database], AsyncIterator[DecisionProgress]],
    as_json: bool,
) -> _Done:
    done = _Done()

    async def run(database: Database) -> None:
        done.total = sum(group.jobs for group in await dead_letters.group_dead_letters(database, selected))
        with Bar(console=err, transient=True, disable=not err.is_terminal) as bar:
            task = bar.add_task(decision, total=done.total)
            async for progress in pages(database):
                done.decided, done.busy = progress.decided, progress.busy
                bar.update(task, completed=done.decided)

    try:
        with_database(run)
    except KeyboardInterrupt:
        tell(f"stopped: {done.decided:,} {decision}, the rest is unchanged")
        raise typer.Exit(130) from None
    if as_json:
        print_json({decision: done.decided, "busy": done.busy, "left": done.left})
    else:
        say(f"{done.decided:,} {decision}" if done.total else "no dead letters match")
        if done.busy:
            say(f"{done.busy:,} are in chunks that are still running; run this again later")
    return done
