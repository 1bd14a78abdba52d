"""A file that is no JSON Lines in UTF-8 is refused by one sentence that says what it is and how to convert it."""

import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.calls.readers import BadLine, read_calls
from schemas.calls import Call
from schemas.errors import InvalidCall
from tests.unit.pipeline.calls.call import CALL

LINE = json.dumps(CALL, ensure_ascii=False)
FILES = {
    "gzip": (gzip.compress(LINE.encode()), r"compressed with gzip; unpack it first: gunzip -k FILE"),
    "zip": (b"PK\x03\x04....", "zip archive"),
    "xz": (b"\xfd7zXZ\x00...", "compressed with xz"),
    "zstd": (b"\x28\xb5\x2f\xfd...", "compressed with zstd"),
    "utf-16": (LINE.encode("utf-16"), r"UTF-16; convert it first: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
    "utf-16 without a mark": (LINE.encode("utf-16-le"), "UTF-16"),
    "utf-32": (LINE.encode("utf-32"), "UTF-32"),
    "gb18030": ("\n".join([LINE] * 3).encode("gb18030"), "perhaps in GB18030; convert it first: iconv -f GB18030"),
    "array": (f"[{LINE}]".encode(), "is one JSON array; write one call a line: jq -c '.\\[\\]'"),
    "pretty": (json.dumps(CALL, indent=2).encode(), "JSON objects over several lines"),
    "sqlite": (b"SQLite format 3\x00", "SQLite"),
    "noise": (os.urandom(8) + b"\xff\xfe\x00\xd8" + b"\x80\x81" * 20, "is not"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_kind_is_named_before_any_file_is_read(tmp_path: Path, kind: str) -> None:
    content, reason = FILES[kind]
    good, other = tmp_path / "good", tmp_path / "calls"
    good.write_text(LINE)
    other.write_bytes(content)
    with pytest.raises(InvalidCall, match=reason):
        next(read_calls([good, other]))


def test_a_pipe_of_another_kind_is_named_too(tmp_path: Path) -> None:
    pipe = tmp_path / "calls"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(FILES["gzip"][0]))
    writer.start()
    with pytest.raises(InvalidCall, match="compressed with gzip"):
        list(read_calls([pipe]))
    writer.join(10)


def test_a_nul_costs_its_line_alone(tmp_path: Path) -> None:
    file = tmp_path / "calls"
    bad = json.dumps({**CALL, "turns": [{"speaker": "customer", "text": "a\0b"}]})
    file.write_text(f"{LINE}\n{bad}\n{LINE}\n")
    first, refused, last = read_calls([file])
    assert isinstance(first, Call)
    assert isinstance(last, Call)
    assert isinstance(refused, BadLine)
    assert "line 2: turns.0.text: has a NUL character" in str(refused)


def test_a_name_that_is_no_text_is_a_file_like_others(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xc4\xe3.jsonl"))
    file.write_text(LINE)
    code = "import sys; from pathlib import Path; from pipeline.cli.calls import _batch_name; "
    code += "print(ascii(_batch_name([Path(sys.argv[1])])))"
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout == "'??.jsonl'\n"
