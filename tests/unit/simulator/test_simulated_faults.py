from __future__ import annotations

import pytest

from simulator.errors import SimulatorError
from simulator.faults import Fault, FaultPlan, parse_fault, parse_faults


def test_a_fault_is_a_kind_a_probability_and_seconds() -> None:
    assert parse_fault("503:0.1") == Fault("503", 0.1, None)
    assert parse_fault("slow:0.5:3") == Fault("slow", 0.5, 3.0)
    assert parse_fault("hang") == Fault("hang", 1.0, None)
    assert Fault("503").status == 503
    assert Fault("cut").status is None


@pytest.mark.parametrize(
    "text", ["flood:0.1", "200:0.1", "600", "503:2", "503:often", "slow:1:-1", "slow:1:2:3", "", "slow:nan"]
)
def test_an_invalid_fault_is_rejected_with_a_sentence(text: str) -> None:
    with pytest.raises(SimulatorError, match=r"\.$"):
        parse_fault(text)


def test_faults_occur_with_their_probability_and_repeat_with_the_seed() -> None:
    plans = [FaultPlan((Fault("503", 0.2),), 5) for _ in range(2)]
    drawn = [[plan.draw() is not None for _ in range(1000)] for plan in plans]
    assert drawn[0] == drawn[1]
    assert 150 < sum(drawn[0]) < 250


def test_the_first_fault_that_occurs_applies() -> None:
    plan = FaultPlan((Fault("503", 0.0), Fault("cut", 1.0), Fault("500", 1.0)), 0)
    assert plan.draw() == Fault("cut", 1.0)


def test_the_text_of_a_row_decides_whether_it_fails() -> None:
    plan = FaultPlan((Fault("badrow", 0.1),), 0)
    rows = [f"row {number}" for number in range(1000)]
    bad = [row for row in rows if plan.fails_row(row)]
    assert 60 < len(bad) < 140
    assert bad == [row for row in rows if plan.fails_row(row)]
    assert plan.draw() is None


@pytest.mark.parametrize(
    "document", [{}, {"faults": {}}, {"faults": [{}]}, {"faults": [{"kind": "503", "probability": "x"}]}]
)
def test_invalid_faults_from_the_admin_route_are_rejected(document: object) -> None:
    with pytest.raises(SimulatorError):
        parse_faults(document)
