"""JSON Lines in UTF-8, one call a line."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from pipeline.calls.readers.reader import BadLine, Reader
from pipeline.calls.readers.recognition import not_json_lines
from schemas.calls import Call
from schemas.errors import InvalidCall
from schemas.problems import first_problem

_HEAD_BYTES = 65_536
_MOST_PIECES = 64
MAX_LINE_BYTES = 16 * 1024 * 1024


def read(file: Path) -> Iterator[Call | BadLine]:
    """Yield the calls of a file; empty lines are skipped.

    Raises:
        InvalidCall: its first bytes are not JSON Lines; also of a pipe, which can be looked into only here.
    """
    with file.open("rb") as stream:
        refuse_others(file, stream.peek(_HEAD_BYTES)[:_HEAD_BYTES])
        for number, line in _lines(stream):
            if len(line) > MAX_LINE_BYTES:
                yield BadLine(file, number, f"longer than {MAX_LINE_BYTES // 1024 // 1024} MiB")
            elif line.strip():
                try:
                    yield Call.model_validate_json(line)
                except ValidationError as error:
                    yield BadLine(file, number, first_problem(error))


def refuse_others(file: Path, head: bytes) -> None:
    """Raise for a file that begins as no file of this format does.

    Raises:
        InvalidCall: says what it is.
    """
    reason = not_json_lines(head)
    if reason is not None:
        raise InvalidCall(f"{file}: {reason}")


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield lines with their numbers; of a line that is too long only the first part is in memory."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        rest = line if len(line) > MAX_LINE_BYTES else b"\n"
        for _ in range(_MOST_PIECES):
            if not rest or rest.endswith(b"\n"):
                break
            rest = stream.readline(MAX_LINE_BYTES)
        else:
            raise InvalidCall(f"{stream.name}: has no line ends; is it a device?")
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _recognizes(file: Path, head: bytes) -> bool:
    refuse_others(file, head)  # no reader after this one would read it
    return True


READER = Reader("jsonl", _recognizes, read)
