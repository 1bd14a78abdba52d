"""`yyc3 dead-letters`: jobs that need a person. Look at them, run them again, put them away."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.progress import Progress as Bar

from pipeline.cli.console import Exit, command, err, out, print_json, table, wiring
from pipeline.operations.dead_letters import JOBS_PER_SECOND, decide
from pipeline.store import Database, dead_letters
from pipeline.store.dead_letters import Decision, Letters
from schemas.errors import ErrorCode, InvalidSetting, JobNotFound
from schemas.ids import BatchId, JobId

app = typer.Typer(help="Jobs that failed for good: look at them, run them again, put them away.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Code = Annotated[ErrorCode | None, typer.Option(help="Only of this code.")]
Model = Annotated[str | None, typer.Option(help="Only of this model.")]
Tenant = Annotated[str | None, typer.Option(help="Only of this tenant.")]
Batch = Annotated[int | None, typer.Option(help="Only of this batch.")]
Job = Annotated[int | None, typer.Option(help="Only this job.")]
Since = Annotated[str | None, typer.Option(help="Failed since: 90m, 2h, 3d, or a time like 2026-11-22T03:00+08:00.")]
Until = Annotated[str | None, typer.Option(help="Failed before: as --since.")]
All = Annotated[bool, typer.Option("--all", help="All of them; needed where nothing else says which.")]

_AGO = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _instant(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    ago = _AGO.fullmatch(text)
    if ago:
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidSetting(
            f"{option}: {text} is neither like 90m, 2h, 3d nor a time like 2026-11-22T03:00+08:00"
        ) from None
    return found if found.tzinfo else found.astimezone()


def _meant(
    code: ErrorCode | None,
    model: str | None,
    tenant: str | None,
    batch: int | None,
    job: int | None,
    since: str | None,
    until: str | None,
) -> Letters:
    return Letters(
        job_id=None if job is None else JobId(job),
        batch_id=None if batch is None else BatchId(batch),
        code=code,
        model=model,
        tenant=tenant,
        since=_instant("--since", since),
        until=_instant("--until", until),
    )


@asynccontextmanager
async def _store() -> AsyncIterator[Database]:
    database = await Database(wiring().database_url).open()
    try:
        yield database
    finally:
        await database.close()


@app.command("list")
@command
def list_letters(
    code: Code = None,
    model: Model = None,
    tenant: Tenant = None,
    batch: Batch = None,
    since: Since = None,
    until: Until = None,
    each: Annotated[bool, typer.Option("--each", help="One line a job instead of one a code and model.")] = False,
    limit: Annotated[int, typer.Option(help="With --each: how many, the newest first.", min=1, max=10_000)] = 20,
    as_json: AsJson = False,
) -> None:
    """How many there are, by code and model."""
    letters = _meant(code, model, tenant, batch, None, since, until)

    async def look() -> list[dead_letters.Letter] | list[dead_letters.Group]:
        async with _store() as database:
            if each:
                return await dead_letters.listed(database, letters, limit)
            return await dead_letters.groups(database, letters)

    found = asyncio.run(look())
    if as_json:
        for entry in found:
            print_json(asdict(entry))
    elif not found:
        out.print("no dead letters" + ("" if letters.everything else " like these"))
    elif each:
        columns = ["job", "kind", "model", "code", "tries", "failed at", "why"]
        table("dead letters", columns, [_letter_row(one) for one in found if isinstance(one, dead_letters.Letter)])
    else:
        columns = ["code", "model", "jobs", "first", "last", "newest job", "meaning"]
        table("dead letters", columns, [_group_row(one) for one in found if isinstance(one, dead_letters.Group)])
        out.print("yyc3 dead-letters show JOB tells one's history; replay runs them again, discard puts them away")


def _letter_row(one: dead_letters.Letter) -> list[object]:
    return [str(one.job_id), one.kind, one.model or "", one.code, one.tries, _when(one.settled_at), one.message or ""]


def _group_row(one: dead_letters.Group) -> list[object]:
    first, last = _when(one.first_at), _when(one.last_at)
    return [one.code, one.model or "", one.jobs, first, last, str(one.newest_job), one.code.meaning]


def _when(at: datetime) -> str:
    return at.astimezone().isoformat(" ", "seconds")


@app.command("show")
@command
def show(job_id: int, as_json: AsJson = False) -> None:
    """What happened to a job: tries, outcomes, decisions."""

    async def look() -> list[dead_letters.Happened]:
        async with _store() as database:
            return await dead_letters.history(database, JobId(job_id))

    found = asyncio.run(look())
    if not found:
        raise JobNotFound(
            f"nothing has happened to a job {job_id} yet; yyc3 jobs show {job_id} tells whether it is there"
        )
    if as_json:
        for one in found:
            print_json(asdict(one))
        return
    rows = [
        [one.series, _when(one.at), one.what, one.code or "", one.endpoint or "", one.message or ""] for one in found
    ]
    table(f"job {job_id}", ["series", "at", "what", "code", "endpoint", "why"], rows)


@app.command("replay")
@command
def replay(
    code: Code = None,
    model: Model = None,
    tenant: Tenant = None,
    batch: Batch = None,
    job: Job = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    per_second: Annotated[
        float, typer.Option(help="Jobs a second, so that new work goes on beside it.", min=0.1)
    ] = JOBS_PER_SECOND,
    as_json: AsJson = False,
) -> None:
    """Run them again, each as its next series. Ctrl-C stops half-way; what was not replayed stays where it is."""
    letters = _meant(code, model, tenant, batch, job, since, until)
    _decide(letters, Decision.REPLAYED, everything, per_second, as_json)


@app.command("discard")
@command
def discard(
    code: Code = None,
    model: Model = None,
    tenant: Tenant = None,
    batch: Batch = None,
    job: Job = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    as_json: AsJson = False,
) -> None:
    """Put them away: they stay failed and are listed no more."""
    letters = _meant(code, model, tenant, batch, job, since, until)
    _decide(letters, Decision.DISCARDED, everything, 1e6, as_json)


def _decide(letters: Letters, decision: Decision, everything: bool, per_second: float, as_json: bool) -> None:
    if letters.everything and not everything:
        raise InvalidSetting("say which: --code, --model, --tenant, --batch, --job, --since or --until; or --all")
    total = decided = busy = 0

    async def run() -> None:
        nonlocal total, decided, busy
        async with _store() as database:
            total = sum(group.jobs for group in await dead_letters.groups(database, letters))
            with Bar(console=err, transient=True, disable=not err.is_terminal) as bar:
                task = bar.add_task(decision, total=total)
                async for progress in decide(database, letters, decision, per_second=per_second):
                    decided, busy = progress.decided, progress.busy
                    bar.update(task, completed=decided)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        err.print(f"stopped: {decided:,} {decision}, the rest stays where it is")
        raise typer.Exit(130) from None
    if as_json:
        print_json({decision: decided, "busy": busy, "left": total - decided - busy})
    else:
        out.print(
            f"{decided:,} {decision}" + (f"; {busy:,} are in chunks that still run, say it again later" if busy else "")
        )
    if decision is Decision.REPLAYED and total > decided + busy:
        out.print(f"{total - decided - busy:,} are past their deadline, or were decided about by others meanwhile")
    if not decided:
        raise typer.Exit(Exit.SOME_FAILED)


__all__ = ["app"]
