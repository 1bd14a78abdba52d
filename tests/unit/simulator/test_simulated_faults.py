from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import SimulatorError
from simulator.faults import Fault, FaultPlan, faults_from_json, parse_fault
from simulator.options import SimulatorOptions
from simulator.script import read_script


def test_a_fault_is_a_kind_a_probability_and_seconds() -> None:
    assert parse_fault("503:0.1") == Fault("503", 0.1, None)
    assert parse_fault("slow:0.5:3") == Fault("slow", 0.5, 3.0)
    assert parse_fault("hang") == Fault("hang", 1.0, None)
    assert Fault("503").status == 503
    assert Fault("cut").status is None


@pytest.mark.parametrize(
    "text", ["flood:0.1", "200:0.1", "600", "503:2", "503:often", "slow:1:-1", "slow:1:2:3", "", "slow:nan"]
)
def test_a_fault_that_makes_no_sense_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(SimulatorError, match=r"\.$"):
        parse_fault(text)


def test_faults_strike_about_as_often_as_told_and_the_same_for_a_seed() -> None:
    plans = [FaultPlan((Fault("503", 0.2),), 5) for _ in range(2)]
    drawn = [[plan.draw() is not None for _ in range(1000)] for plan in plans]
    assert drawn[0] == drawn[1]
    assert 150 < sum(drawn[0]) < 250


def test_the_first_fault_that_strikes_wins() -> None:
    plan = FaultPlan((Fault("503", 0.0), Fault("cut", 1.0), Fault("500", 1.0)), 0)
    assert plan.draw() == Fault("cut", 1.0)


def test_a_bad_row_is_always_the_same_row() -> None:
    plan = FaultPlan((Fault("badrow", 0.1),), 0)
    rows = [f"row {number}" for number in range(1000)]
    bad = [row for row in rows if plan.strikes_row(row)]
    assert 60 < len(bad) < 140
    assert bad == [row for row in rows if plan.strikes_row(row)]
    assert plan.draw() is None


@pytest.mark.parametrize(
    "document", [{}, {"faults": {}}, {"faults": [{}]}, {"faults": [{"kind": "503", "probability": "x"}]}]
)
def test_broken_faults_from_the_admin_route_are_refused(document: object) -> None:
    with pytest.raises(SimulatorError):
        faults_from_json(document)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_the_first_scripted_line_that_matches_wins(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"when": "order", "answer": "first"}', "", '{"when": "", "answer": "second"}')
    script = read_script(file)
    found = [script.find(text) for text in ("my order", "hello")]
    assert [one and one.answer for one in found] == ["first", "second"]


def test_a_scripted_line_with_times_is_used_up(tmp_path: Path) -> None:
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
def test_a_broken_scripted_line_is_named_with_file_and_number(tmp_path: Path, line: str) -> None:
    file = write(tmp_path / "answers.jsonl", '{"when": "ok", "answer": "ok"}', line)
    with pytest.raises(SimulatorError, match=r"Line 2 .*answers\.jsonl"):
        read_script(file)


def test_a_missing_answers_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match="nowhere"):
        read_script(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "settings", [{"model": ""}, {"speed": 0}, {"port": 70000}, {"vllm_version": "new"}, {"max_num_seqs": 0}]
)
def test_a_setting_that_makes_no_sense_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(SimulatorError):
        SimulatorOptions(**{"model": "m", **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "legacy"), [("0.11.2", True), ("0.12.0", False), ("0.32.0", False), ("1.0", False)]
)
def test_versions_below_0_12_are_legacy(version: str, legacy: bool) -> None:
    assert SimulatorOptions("m", vllm_version=version).legacy is legacy
