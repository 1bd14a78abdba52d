from __future__ import annotations

from pathlib import Path

import pytest

from simulator.answers.scripted import read_script
from simulator.errors import SimulatorError


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_the_first_matching_scripted_line_applies(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"when": "order", "answer": "first"}', "", '{"when": "", "answer": "second"}')
    script = read_script(file)
    found = [script.find(text) for text in ("my order", "hello")]
    assert [one and one.answer for one in found] == ["first", "second"]


def test_a_scripted_line_with_times_is_used_that_many_times(tmp_path: Path) -> None:
    script = read_script(write(tmp_path / "a.jsonl", '{"when": "x", "status": 503, "times": 2}'))
    assert [script.find("x") is not None for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"answer": "x"}',
        '{"when": "x"}',
        '{"when": "x", "answer": "y", "status": 500}',
        '{"when": "x", "status": 200}',
        '{"when": "x", "fault": "flood"}',
        '{"when": "x", "answer": "y", "times": 0}',
        '{"when": "x", "answer": "y", "finish_reason": "bored"}',
        '{"when": "x", "answer": "y", "whenn": 1}',
    ],
)
def test_an_invalid_scripted_line_is_named_with_file_and_number(tmp_path: Path, line: str) -> None:
    file = write(tmp_path / "answers.jsonl", '{"when": "ok", "answer": "ok"}', line)
    with pytest.raises(SimulatorError, match=r"Line 2 .*answers\.jsonl"):
        read_script(file)


def test_a_missing_answers_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match="nowhere"):
        read_script(tmp_path / "nowhere")
