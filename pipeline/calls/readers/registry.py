"""The readers of call files. A new format is one module and one line here."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from stat import S_ISREG

from pipeline.calls.readers import jsonl
from pipeline.calls.readers.reader import BadLine, Reader
from schemas.calls import Call
from schemas.errors import InvalidCall

_HEAD_BYTES = 65_536
READERS: list[Reader] = [jsonl.READER]
"""The first one that recognizes a file reads it; JSON Lines is last and reads every file."""


def register(reader: Reader) -> None:
    """Add a reader in front of the others."""
    READERS.insert(0, reader)


def read_calls(files: Sequence[Path]) -> Iterator[Call | BadLine]:
    """Yield the calls of the files in their order.

    Raises:
        InvalidCall: a file cannot be read, or no reader reads it. All are opened before the first one is read.
    """
    for file, reader in [(file, _reader_of(file)) for file in files]:
        try:
            yield from reader.read(file)
        except OSError as error:
            raise InvalidCall(f"{file} cannot be read: {error.strerror or error}") from error


def _reader_of(file: Path) -> Reader:
    try:
        if S_ISREG(file.stat().st_mode):
            with file.open("rb") as stream:
                head = stream.read(_HEAD_BYTES)
        else:
            head = b""  # a pipe can be opened and read only once: it is JSON Lines
    except OSError as error:
        raise InvalidCall(f"{file} cannot be read: {error.strerror or error}") from error
    return next(reader for reader in READERS if reader.recognizes(file, head))
