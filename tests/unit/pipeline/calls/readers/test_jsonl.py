"""JSON Lines: one call a line, bad lines separated."""

import json
from pathlib import Path

import pytest

from pipeline.calls.readers import BadLine, jsonl, read_calls
from schemas.calls import Call
from schemas.errors import InvalidCall
from tests.unit.pipeline.calls.call import CALL


def test_bad_lines_are_named_by_file_and_number_and_the_others_are_read(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    lines = [
        "\ufeff" + json.dumps(CALL),
        "not json",
        "",
        json.dumps({"call_id": "x", "turns": []}),
        json.dumps({"call_id": "y", "turns": [{"speaker": "robot", "text": "a"}]}),
        json.dumps(CALL | {"call_id": "c2"}),
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    found = list(read_calls([file]))
    assert [entry.call_id for entry in found if isinstance(entry, Call)] == ["c1", "c2"]
    bad = [entry for entry in found if isinstance(entry, BadLine)]
    assert [entry.line for entry in bad] == [2, 4, 5]
    assert "turns" in bad[1].reason
    assert "turns.0.speaker" in bad[2].reason
    assert str(bad[0]).startswith(f"{file}, line 2: ")


def test_a_line_in_another_encoding_is_a_bad_line(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    file.write_bytes(json.dumps(CALL, ensure_ascii=False).encode("gbk") + b"\n" + json.dumps(CALL).encode())
    first, second = read_calls([file])
    assert isinstance(first, BadLine)
    assert isinstance(second, Call)


def test_a_missing_file_is_refused_before_any_file_is_read(tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps(CALL))
    with pytest.raises(InvalidCall, match=r"absent\.jsonl cannot be read: No such file"):
        next(read_calls([good, tmp_path / "absent.jsonl"]))


def test_a_line_that_is_too_long_is_skipped_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1024 * 1024)
    file = tmp_path / "calls.jsonl"
    file.write_text("x" * 3_000_000 + "\n" + json.dumps(CALL) + "\n")
    bad, call = read_calls([file])
    assert isinstance(bad, BadLine)
    assert (bad.line, bad.reason) == (1, "longer than 1 MiB")
    assert isinstance(call, Call)
