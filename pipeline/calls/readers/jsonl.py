"""Call files: JSON Lines in UTF-8, one call a line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from schemas.calls import Call
from schemas.errors import InvalidCall, explain

MAX_LINE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no call; the others go on. `line` counts from 1."""

    file: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}; skipped"


def read_calls(files: Sequence[Path]) -> Iterator[Call | BadLine]:
    """Calls of the files in their order; empty lines are nothing.

    Raises:
        InvalidCall: a file cannot be opened. All are tried before the first line is read.
    """
    for file in files:
        try:
            file.open("rb").close()
        except OSError as error:
            raise InvalidCall(f"{file} cannot be read: {error.strerror or error}") from error
    for file in files:
        yield from _lines(file)


def _lines(file: Path) -> Iterator[Call | BadLine]:
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE_BYTES)
                yield BadLine(file, number, f"longer than {MAX_LINE_BYTES // 1024 // 1024} MiB")
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                yield Call.model_validate_json(line)
            except ValidationError as error:
                yield BadLine(file, number, explain(error))


__all__ = ["MAX_LINE_BYTES", "BadLine", "read_calls"]
