"""`yyc3 batches`: submit a file, watch it, pause, resume, cancel and retry it, read its output."""

import asyncio
import getpass
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipeline.batches import ReadSoFar, life
from pipeline.batches.reading import STDIN, BatchFile
from pipeline.cli.batch_options import BatchOptions
from pipeline.cli.batch_output import Targets, as_written, write_output
from pipeline.cli.batch_watch import print_batch, row_of, watch_batch
from pipeline.cli.console import (
    AsJson,
    command,
    err,
    goes_on,
    print_json,
    say,
    table,
    tell,
    wiring,
    with_database,
    with_options,
)
from pipeline.cli.exit_codes import Exit
from pipeline.concurrency.cancellation import cancel_and_wait
from pipeline.store import Database, batch_life, pauses
from pipeline.store.batch_input import BatchInput
from schemas.batches import BatchSettings, BatchStatus, BatchView
from schemas.errors import InvalidSetting
from schemas.ids import BatchId
from schemas.ids import batch_id as as_batch_id

batches = typer.Typer(help="Batch files: submit, watch, pause, resume, cancel, retry, read.", no_args_is_help=True)
BatchNumber = Annotated[int, typer.Argument(help="Number of the batch.")]


@batches.command("submit")
@command
@with_options(BatchOptions)
def submit(
    file: Annotated[Path, typer.Argument(help="JSON Lines, also .gz or .zst; - is stdin.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end, with a bar.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="File for the answers: .jsonl, .csv, .parquet, .xlsx; waits for the end.")
    ] = None,
    errors: Annotated[
        Path | None, typer.Option(help="File for rows and lines that have no answer; waits for the end.")
    ] = None,
    as_json: AsJson = False,
    *,
    options: BatchOptions,
) -> None:
    """Submit a file of jobs: OpenAI's batch lines, or ours, or both; the first rows run while the rest is read."""
    settings = options.settings(file)
    wait = wait or out is not None or errors is not None
    if as_json and out == STDIN:
        raise InvalidSetting("--json: prints to stdout, as --out does; name a file")
    with Targets(out, errors, inputs=[] if file == STDIN else [file]) as targets:
        done = _submit(file, settings, options, quiet=as_json)
        number = done.batch_id
        goes_on(f"batch {number} continues; watch it: yyc3 batches watch {number}")
        if wait:
            found = _wait(number, targets, quiet=as_json)
        else:
            found = with_database(lambda database: batch_life.view(database, number))
    if as_json:
        print_json(found)
    elif wait:
        print_batch(found, on_stderr=out == STDIN)
        as_written(targets)
    else:
        _print_submitted(found)
    incomplete = found.refused or (wait and found.succeeded < found.jobs)
    raise typer.Exit(Exit.SOME_FAILED if incomplete else Exit.DONE)


def _submit(file: Path, settings: BatchSettings, options: BatchOptions, *, quiet: bool) -> BatchInput:
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=quiet or not err.is_terminal,
    )
    task = bar.add_task("reading")
    said: set[str] = set()

    def show(so_far: ReadSoFar) -> None:
        goes_on(f"batch {so_far.batch_id} has {so_far.lines:,} lines, and they run; the same command goes on")
        bar.update(task, description=f"batch {so_far.batch_id}: {so_far.lines:,} lines, {so_far.refused:,} refused")
        if so_far.waiting is not None and so_far.waiting not in said:
            said.add(so_far.waiting)
            tell(f"reading waits: {so_far.waiting}")

    async def run() -> BatchInput:
        async with wiring().adapters() as adapters:
            with BatchFile(file, options.encoding, reread=settings.strict) as source:
                return await adapters.file_submitter().submit(
                    source, settings, tenant=options.tenant, key=options.key, on_progress=show
                )

    with bar:
        return asyncio.run(run())


def _print_submitted(found: BatchView) -> None:
    if found.refused:
        say(
            f"batch {found.batch_id} is stored: {found.jobs:,} jobs; {found.refused:,} lines are no jobs, see: "
            f"yyc3 batches output {found.batch_id} --errors FILE"
        )
    else:
        say(f"batch {found.batch_id} is stored: {found.jobs:,} jobs; watch it: yyc3 batches watch {found.batch_id}")
    if found.idempotency_key is not None:
        tell(f"key: {found.idempotency_key}", style="dim")


def _wait(number: BatchId, targets: Targets, *, quiet: bool) -> BatchView:
    async def work(database: Database) -> BatchView:
        watching = asyncio.create_task(watch_batch(database, number, quiet=quiet))
        writing = asyncio.create_task(write_output(database, number, targets, wait=True))
        try:  # a full disk is said when it is full
            await asyncio.gather(watching, writing)
        finally:
            for task in (watching, writing):
                await cancel_and_wait(task)
        return watching.result()

    return with_database(work)


@batches.command("list")
@command
def list_batches(
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    limit: Annotated[int, typer.Option(help="Most batches.", min=1, max=1_000)] = 20,
    as_json: AsJson = False,
) -> None:
    """List the newest batches, newest first."""
    found = with_database(lambda database: batch_life.newest(database, tenant=tenant, limit=limit))
    if as_json:
        for one in found:
            print_json(one)
    elif found:
        columns = ["batch", "name", "tenant", "status", "jobs", "succeeded", "failed", "open", "submitted"]
        table("batches", columns, [row_of(one) for one in found])
    else:
        say("no batches")


@batches.command("show")
@command
def show(batch_id: BatchNumber, as_json: AsJson = False) -> None:
    """Print everything known about a batch."""
    number = as_batch_id(batch_id)

    async def read(database: Database) -> tuple[BatchView, dict[str, int]]:
        found = await batch_life.view(database, number)
        return found, await batch_life.failures_by_code(database, number) if found.failed else {}

    found, failures = with_database(read)
    if as_json:
        print_json(found.model_dump(mode="json") | {"failed_by_code": failures})
    else:
        print_batch(found, failures)


@batches.command("watch")
@command
def watch(batch_id: BatchNumber, as_json: AsJson = False) -> None:
    """Show the progress of a batch until it has ended; a closed terminal changes nothing for it."""
    number = as_batch_id(batch_id)
    goes_on(f"batch {number} continues; watch it: yyc3 batches watch {number}")
    found = with_database(lambda database: watch_batch(database, number, quiet=as_json))
    print_json(found) if as_json else print_batch(found)
    raise typer.Exit(Exit.DONE if found.succeeded == found.jobs and not found.refused else Exit.SOME_FAILED)


@batches.command("pause")
@command
def pause(
    batch_id: BatchNumber,
    reason: Annotated[str, typer.Option(help="Shown to others.")] = "paused by hand",
    as_json: AsJson = False,
) -> None:
    """Send no more rows of a batch within two seconds; those in flight end, the engine's slots are for others."""
    number = as_batch_id(batch_id)

    async def work(database: Database) -> BatchView:
        return await life.pause(database, number, by_whom=_by_whom(), reason=reason)

    found = with_database(work)
    paused = f"batch {number} is paused; go on with: yyc3 batches resume {number}"
    _done(found, f"batch {number} has ended before" if found.status.is_final else paused, as_json)


def _by_whom() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


@batches.command("resume")
@command
def resume(batch_id: BatchNumber, as_json: AsJson = False) -> None:
    """Go on with a batch that is paused."""
    number = as_batch_id(batch_id)

    async def work(database: Database) -> tuple[bool, BatchView]:
        return await pauses.resume(database, number), await batch_life.view(database, number)

    paused, found = with_database(work)
    _done(found, f"batch {number} goes on" if paused else f"batch {number} was not paused", as_json)


@batches.command("cancel")
@command
def cancel(batch_id: BatchNumber, as_json: AsJson = False) -> None:
    """Cancel the rows of a batch that have no answer yet, those in flight too."""
    number = as_batch_id(batch_id)
    found = with_database(lambda database: life.cancel(database, number))
    rest = f"{found.cancelled:,} rows are cancelled; run them after all with: yyc3 batches retry {number}"
    is_cancelled = found.status in {BatchStatus.CANCELLING, BatchStatus.CANCELLED}
    _done(found, f"batch {number}: {rest}" if is_cancelled else f"batch {number} has ended before", as_json)


@batches.command("retry")
@command
def retry(batch_id: BatchNumber, as_json: AsJson = False) -> None:
    """Run exactly the rows again that failed, expired or were cancelled; a window begins again."""
    number = as_batch_id(batch_id)

    async def work(database: Database) -> tuple[life.Retried, BatchView]:
        return await life.retry(database, number), await batch_life.view(database, number)

    done, found = with_database(work)
    if done.busy_chunks:
        tell(f"rows of {done.busy_chunks:,} parts that still run are left out; retry again when they have ended")
    _done(found, f"batch {number}: {done.rows:,} rows run again", as_json)


def _done(found: BatchView, sentence: str, as_json: bool) -> None:
    print_json(found) if as_json else say(sentence)


@batches.command("output")
@command
def output(
    batch_id: BatchNumber,
    out: Annotated[
        Path, typer.Option(help="File for the answers: .jsonl, .csv, .parquet, .xlsx; - is stdout.")
    ] = STDIN,
    errors: Annotated[Path | None, typer.Option(help="File for rows and lines that have no answer.")] = None,
    ordered: Annotated[bool, typer.Option("--ordered", help="In the order of the file.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Only what is settled now, instead of until the end.")] = False,
    cursor: Annotated[str | None, typer.Option(help="Go on where an earlier output stopped.")] = None,
) -> None:
    """Print the answers of a batch as they come, one OpenAI line each, or write them to a file."""
    number = as_batch_id(batch_id)
    if ordered and cursor is not None:
        raise InvalidSetting("--cursor: goes with the order of settling, not with --ordered")
    goes_on(f"batch {number} continues; ask for its output again")
    with Targets(out, errors) as targets:
        after = with_database(
            lambda database: write_output(database, number, targets, wait=not now, ordered=ordered, cursor=cursor)
        )
    if after is not None:
        tell(f"what is settled later: --cursor {after}", style="dim")
    as_written(targets)
