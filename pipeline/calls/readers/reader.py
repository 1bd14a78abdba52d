"""What a reader of call files consists of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.calls import Call


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not a call; it is skipped. `line` counts from 1."""

    file: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}; skipped"


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one format.

    Attributes:
        name: of the format.
        recognizes: whether a file is of this format, by its name and first bytes.
        read: yields the calls of a file in order, and what is not a call.
    """

    name: str
    recognizes: Callable[[Path, bytes], bool]
    read: Callable[[Path], Iterator[Call | BadLine]]
