"""The output of a batch into files."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.batches.export import Export, export_for
from pipeline.batches.output import BatchOutput, error_line, refused_line
from pipeline.cli.console import tell
from pipeline.files import OutputFile
from pipeline.store import Database, batch_life
from pipeline.store.batch_output import Cursor, OutputRow
from pipeline.store.new_rows import RefusedRow
from schemas.errors import UnwritableFile
from schemas.ids import BatchId

_STDOUT = Path("-")


class Targets:
    """The files for answers and for what has none, opened before the work begins; a context manager."""

    def __init__(self, out: Path | None, errors: Path | None, *, inputs: Sequence[Path] = ()) -> None:
        if out is not None and errors is not None and os.path.realpath(out) == os.path.realpath(errors):
            raise UnwritableFile("--errors: names the same file as --out; name another one")
        self.out, self.errors = out, errors
        self._inputs = inputs
        self._files = ExitStack()
        self._answers: Export | None = None
        self._error_file: OutputFile | None = None
        self.answers = self.failures = 0

    def __enter__(self) -> Self:
        make = export_for(self.out) if self.out is not None else None
        with ExitStack() as opening:
            if self.out is not None and make is not None:
                answers = opening.enter_context(OutputFile(self.out, inputs=self._inputs))
                self._answers = make(answers)
            if self.errors is not None:
                self._error_file = opening.enter_context(
                    OutputFile(self.errors, option="--errors", inputs=self._inputs)
                )
            self._files = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._answers is not None:
            self._answers.close()
        self._files.__exit__(kind, value, traceback)

    def write(self, rows: Sequence[OutputRow]) -> None:
        """Write rows that were settled."""
        if self._answers is not None:
            self._answers.write(rows)
        failed = [row for row in rows if row.state != "succeeded"]
        self._write_errors([error_line(row) for row in failed])
        self.answers += len(rows) - len(failed)

    def write_refused(self, rows: Sequence[RefusedRow]) -> None:
        """Write lines that are no jobs."""
        self._write_errors([refused_line(row) for row in rows])

    def _write_errors(self, lines: Sequence[bytes]) -> None:
        self.failures += len(lines)
        if self._error_file is not None and lines:
            self._error_file.write_bytes(b"".join(lines))


async def write_output(
    database: Database,
    batch_id: BatchId,
    targets: Targets,
    *,
    wait: bool,
    ordered: bool = False,
    cursor: str | None = None,
) -> Cursor | None:
    """Write what is settled; returns the cursor for what is settled later, if the order is that of settling."""
    await batch_life.view(database, batch_id)  # says if there is none
    output, at = BatchOutput(database, batch_id), Cursor() if cursor is None else Cursor.parse(cursor)
    if targets.out is None and targets.errors is None:
        return None
    if ordered:
        waited: set[int] = set()

        def on_wait(line: int, why: str) -> None:
            if line not in waited:
                waited.add(line)
                tell(f"the output waits for line {line:,}: {why}")

        async for rows in output.ordered(wait=wait, on_wait=on_wait):
            targets.write(rows)
    else:
        async for rows, after in output.settled(at, wait=wait):
            targets.write(rows)
            at = after
    if targets.errors is not None and cursor is None:  # an earlier output had them
        async for refused in output.refused():
            targets.write_refused(refused)
    return None if ordered else at


def as_written(targets: Targets) -> None:
    """Say what was written where."""
    if targets.out not in {None, _STDOUT}:
        tell(f"{targets.answers:,} answers in {targets.out}")
    if targets.errors is not None:
        tell(f"{targets.failures:,} rows and lines without an answer in {targets.errors}")
