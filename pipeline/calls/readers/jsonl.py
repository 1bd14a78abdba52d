"""JSON Lines in UTF-8, one call a line."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from pipeline.calls.readers.reader import BadLine, Reader
from schemas.calls import Call
from schemas.errors import first_problem

MAX_LINE_BYTES = 16 * 1024 * 1024


def read(file: Path) -> Iterator[Call | BadLine]:
    """Yield the calls of a file; empty lines are skipped."""
    with file.open("rb") as stream:
        for number, line in _lines(stream):
            if len(line) > MAX_LINE_BYTES:
                yield BadLine(file, number, f"longer than {MAX_LINE_BYTES // 1024 // 1024} MiB")
            elif line.strip():
                try:
                    yield Call.model_validate_json(line)
                except ValidationError as error:
                    yield BadLine(file, number, first_problem(error))


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield lines with their numbers; of a line that is too long only the first part is in memory."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        rest = line if len(line) > MAX_LINE_BYTES else b"\n"
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_LINE_BYTES)
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


READER = Reader("jsonl", lambda _file, _head: True, read)
