"""A reader from outside the package reads the files that it recognizes; JSON Lines reads all others."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.calls.readers import BadLine, Reader, read_calls, register
from pipeline.calls.readers.registry import READERS
from schemas.calls import Call, Turn
from schemas.errors import InvalidCall
from tests.unit.pipeline.calls.call import CALL

HEAD = b"call_id,speaker,text"


def read(file: Path) -> Iterator[Call | BadLine]:
    """Yield a call for each row of a CSV file."""
    with file.open(newline="", encoding="utf-8") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=2):
            if row["speaker"] in {"customer", "agent"}:
                turn = Turn.model_validate({"speaker": row["speaker"], "text": row["text"]})
                yield Call(call_id=row["call_id"], turns=(turn,))
            else:
                yield BadLine(file, number, "speaker: is neither customer nor agent")


@pytest.fixture
def csv_reader() -> Iterator[Reader]:
    reader = Reader("csv", lambda _file, head: head.startswith(HEAD), read)
    register(reader)
    yield reader
    READERS.remove(reader)


def written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


@pytest.mark.usefixtures("csv_reader")
def test_a_reader_is_chosen_by_the_content_of_a_file(tmp_path: Path) -> None:
    table = written(tmp_path / "calls.txt", HEAD + b"\nc7,customer,hello\nc8,robot,beep\nc9,agent,bye\n")
    lines = written(tmp_path / "calls.csv", json.dumps(CALL).encode())
    found = list(read_calls([table, lines]))
    assert [entry.call_id for entry in found if isinstance(entry, Call)] == ["c7", "c9", "c1"]
    (bad,) = [entry for entry in found if isinstance(entry, BadLine)]
    assert str(bad) == f"{table}, line 3: speaker: is neither customer nor agent; skipped"


def test_a_file_that_no_reader_recognizes_is_refused_as_a_whole(tmp_path: Path) -> None:
    table = written(tmp_path / "calls.csv", HEAD + b"\nc7,customer,hello\n")
    with pytest.raises(InvalidCall, match=r"calls\.csv: is not JSON Lines: no line begins with {"):
        next(read_calls([table]))


def test_the_reader_registered_last_is_asked_first(csv_reader: Reader, tmp_path: Path) -> None:
    every = Reader("every", lambda _file, _head: True, lambda file: iter([BadLine(file, 1, "refused")]))
    register(every)
    try:
        table = written(tmp_path / "calls.csv", HEAD + b"\nc7,customer,hello\n")
        assert list(read_calls([table])) == [BadLine(table, 1, "refused")]
    finally:
        READERS.remove(every)
    assert READERS[0] is csv_reader
    assert READERS[-1].name == "jsonl"
