"""`yyc3 calls analyze`: call files in, one line of insight a call out."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipeline.calls import BadLine, Tally, read_calls
from pipeline.calls import analyze as analyze_calls
from pipeline.cli.console import Exit, command, err, print_json, wiring
from pipeline.wiring import Wiring
from schemas.calls import Call, CallReport
from schemas.errors import ErrorCode, InvalidCall

calls = typer.Typer(help="Recorded calls.", no_args_is_help=True)


@dataclass
class Summary:
    """What an analysis came to."""

    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    skipped_lines: int = 0
    intents: Counter[str] = field(default_factory=Counter)
    sentiments: Counter[str] = field(default_factory=Counter)
    reports: list[CallReport] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """The closing line."""
        return {
            "calls": self.tally.calls,
            "jobs": self.tally.jobs,
            "succeeded": self.tally.succeeded,
            "failed": self.tally.failed,
            "skipped_lines": self.skipped_lines,
            "seconds": round(self.seconds, 3),
            "jobs_per_second": round(self.tally.jobs / self.seconds, 1) if self.seconds else 0.0,
        }

    @property
    def exit_code(self) -> Exit:
        """Whether all went well."""
        return Exit.SOME_FAILED if self.tally.failed or self.skipped_lines else Exit.DONE

    def add(self, report: CallReport, *, keep: int = 0) -> None:
        """Count a report; keep the first few."""
        self.intents.update(intent.label for intent in report.intents)
        if report.sentiment is not None:
            self.sentiments[report.sentiment.label] += 1
        if len(self.reports) < keep:
            self.reports.append(report)


def run_analysis(
    here: Wiring, files: list[Path], target: TextIO | None, *, model: str | None, quiet: bool, keep: int = 0
) -> Summary:
    """Analyse files with a progress bar on stderr; reports go to `target`, a line each."""
    summary = Summary()

    def good(lines: Iterator[Call | BadLine]) -> Iterator[Call]:
        for line in lines:
            if isinstance(line, BadLine):
                summary.skipped_lines += 1
                err.print(str(line), markup=False, highlight=False)
            else:
                yield line

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("jobs"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )

    async def run() -> None:
        async with here.adapters() as adapters:
            submitter = adapters.submitter(None)
            told: set[ErrorCode] = set()
            task = bar.add_task("analysing calls", total=None)

            def show(tally: Tally) -> None:
                if tally.waits_for is not None and tally.waits_for not in told:
                    told.add(tally.waits_for)
                    err.print(f"some jobs wait for another try: {tally.waits_for}; see: yyc3 health", highlight=False)
                summary.tally = tally
                bar.update(task, completed=tally.settled, total=tally.jobs)

            name = ", ".join(file.name for file in files)[:200]
            stream = good(read_calls(files))
            async for report in analyze_calls(
                submitter, adapters.database, stream, name=name, model=model, progress=show
            ):
                summary.add(report, keep=keep)
                if target is not None:
                    target.write(report.model_dump_json() + "\n")

    started = time.perf_counter()
    with nullcontext() if quiet else bar:
        asyncio.run(run())
    summary.seconds = time.perf_counter() - started
    return summary


class OutputFile:
    """A file that appears under its name only when it is whole; `-` is stdout."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._half = path.with_name(path.name + ".part")

    def __enter__(self) -> TextIO:
        if str(self._path) == "-":
            return sys.stdout
        try:
            self._stream = self._half.open("w", encoding="utf-8")
        except OSError as error:
            raise InvalidCall(f"{self._path} cannot be written: {error.strerror or error}") from error
        return self._stream

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if str(self._path) == "-":
            return
        self._stream.close()
        if kind is None:
            self._half.replace(self._path)


@calls.command("analyze")
@command
def analyze(
    files: Annotated[list[Path], typer.Argument(help="JSON Lines, one call a line.")],
    to: Annotated[Path, typer.Option("--out", help="Where the reports go, a line a call; - is stdout.")],
    model: Annotated[
        str | None, typer.Option(help="A model of models.toml; the first that can do it if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the closing counts as one JSON object.")] = False,
) -> None:
    """Find intents and sentiments of recorded calls, in bulk, in order."""
    here = wiring()
    with OutputFile(to) as target:
        summary = run_analysis(here, files, target, model=model, quiet=as_json)
    if as_json:
        print_json(summary.as_json())
    else:
        done = summary.tally
        err.print(
            f"{done.calls} calls, {done.jobs} jobs, {done.succeeded} succeeded, {done.failed} failed, "
            f"{summary.skipped_lines} lines skipped, {summary.seconds:.1f} s; reports in {to}",
            highlight=False,
        )
    raise typer.Exit(summary.exit_code)


__all__ = ["OutputFile", "Summary", "calls", "run_analysis"]
