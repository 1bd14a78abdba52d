"""`yyc3 calls analyze`: call files in, one report a call out."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipeline.calls import AnalysisProgress, BadLine, read_calls
from pipeline.calls import analyze as analyze_calls
from pipeline.cli.console import command, err, goes_on, print_json, tell, wiring
from pipeline.cli.exit_codes import Exit
from pipeline.files import OutputFile
from pipeline.wiring import Wiring
from schemas.calls import Call, CallReport
from schemas.errors import ErrorCode, InvalidCall

_NAMED_LINES = 100
calls = typer.Typer(help="Recorded calls.", no_args_is_help=True)


@dataclass
class Summary:
    """The result of an analysis."""

    progress: AnalysisProgress = field(default_factory=AnalysisProgress)
    seconds: float = 0.0
    skipped_lines: int = 0
    calls_with_errors: int = 0
    intents: Counter[str] = field(default_factory=Counter)
    sentiments: Counter[str] = field(default_factory=Counter)
    reports: list[CallReport] = field(default_factory=list)
    first_call: Call | None = None

    def as_json(self) -> dict[str, object]:
        """Return the closing JSON object."""
        return {
            "calls": self.progress.calls,
            "jobs": self.progress.jobs,
            "succeeded": self.progress.succeeded,
            "failed": self.progress.failed,
            "cached": self.progress.cached,
            "skipped_lines": self.skipped_lines,
            "seconds": round(self.seconds, 3),
            "jobs_per_second": round(self.progress.jobs / self.seconds, 1) if self.seconds else 0.0,
        }

    @property
    def exit_code(self) -> Exit:
        """The exit code of the command."""
        incomplete = self.progress.failed or self.skipped_lines or self.calls_with_errors
        return Exit.SOME_FAILED if incomplete else Exit.DONE

    def add(self, report: CallReport, *, keep: int = 0) -> None:
        """Count a report, and keep the first few."""
        self.calls_with_errors += bool(report.errors)
        self.intents.update(intent.label for intent in report.intents)
        if report.sentiment is not None:
            self.sentiments[report.sentiment.label] += 1
        if len(self.reports) < keep:
            self.reports.append(report)


def run_analysis(
    wired: Wiring,
    files: list[Path],
    target: OutputFile | None,
    *,
    model: str | None,
    quiet: bool,
    keep: int = 0,
    cache: bool = True,
) -> Summary:
    """Analyse files with a progress bar on stderr.

    Args:
        wired: of the servers.
        files: to read.
        target: gets the reports, one a line.
        model: entry of models.toml; None for the first one that supports the kinds.
        quiet: no progress bar.
        keep: how many reports the summary keeps.
        cache: whether answers of earlier jobs are used.
    """
    summary = Summary()
    goes_on("jobs that were submitted continue; see: yyc3 jobs list")
    bar = _bar()
    show = _Shown(summary, bar)

    async def run() -> None:
        async with wired.adapters() as adapters:
            reports = analyze_calls(
                adapters.batch_submitter(),
                adapters.database,
                _good_lines(read_calls(files), summary),
                name=_batch_name(files),
                model=model,
                cache=cache,
                on_progress=show.update,
            )
            async for report in reports:
                summary.add(report, keep=keep)
                if target is not None:
                    target.write(report.model_dump_json() + "\n")

    started = time.perf_counter()
    with nullcontext() if quiet else bar:
        asyncio.run(run())
    summary.seconds = time.perf_counter() - started
    return summary


def _batch_name(files: list[Path]) -> str:
    """Return the names of files for people; what is no text in them is replaced."""
    names = ", ".join(file.name for file in files)
    return names.encode("utf-8", "replace").decode().replace("\x00", "?")[:200] or "calls"


def _good_lines(lines: Iterator[Call | BadLine], summary: Summary) -> Iterator[Call]:
    for line in lines:
        if isinstance(line, BadLine):
            summary.skipped_lines += 1
            if summary.skipped_lines <= _NAMED_LINES:
                tell(str(line))
            if summary.skipped_lines == _NAMED_LINES:
                tell("more lines that are skipped are only counted")
        else:
            summary.first_call = summary.first_call or line
            yield line


def _bar() -> Progress:
    return Progress(
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


class _Shown:
    """Shows progress, and each reason for a retry once."""

    def __init__(self, summary: Summary, bar: Progress) -> None:
        self._summary = summary
        self._bar = bar
        self._task = bar.add_task("analysing calls", total=None)
        self._reasons: set[ErrorCode] = set()

    def update(self, progress: AnalysisProgress) -> None:
        reason = progress.waits_for
        if reason is not None and reason not in self._reasons:
            self._reasons.add(reason)
            tell(f"some jobs wait for another attempt: {reason}; see: yyc3 health")
        self._summary.progress = progress
        if progress.batch_ids:
            numbers = " / ".join(map(str, progress.batch_ids))
            goes_on(f"submitted jobs continue; ask for them: yyc3 jobs list --batch {numbers}")
        self._bar.update(self._task, completed=progress.settled, total=progress.jobs)


def counted(summary: Summary) -> str:
    """Return the counts of an analysis in words."""
    done = summary.progress
    counts = [f"{done.calls} calls", f"{done.jobs} jobs", f"{done.succeeded} succeeded", f"{done.failed} failed"]
    if done.cached:
        counts.append(f"{done.cached} of them answered from the cache")
    if summary.skipped_lines:
        counts.append(f"{summary.skipped_lines} lines skipped")
    return ", ".join([*counts, f"{summary.seconds:.1f} s"])


@calls.command("analyze")
@command
def analyze(
    files: Annotated[list[Path], typer.Argument(help="JSON Lines, one call a line.")],
    to: Annotated[Path, typer.Option("--out", help="File for the reports, one a line; - is stdout.")],
    model: Annotated[
        str | None, typer.Option(help="Entry of models.toml; default: the first one that supports the kind.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the final counts as one JSON object.")] = False,
) -> None:
    """Find the intents and sentiments of recorded calls, in bulk; reports are in the order of the calls."""
    wired = wiring()
    with OutputFile(to, inputs=files) as target:
        summary = run_analysis(wired, files, target, model=model, quiet=as_json)
        if not summary.progress.calls:
            raise InvalidCall("the input has no call; the file for the reports is unchanged")
    if as_json:
        print_json(summary.as_json())
    else:
        tell(f"{counted(summary)}; reports in {to}")
    raise typer.Exit(summary.exit_code)
