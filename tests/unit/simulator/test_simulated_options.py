from __future__ import annotations

from typing import Any

import pytest

from simulator.errors import SimulatorError
from simulator.options import SimulatorOptions


@pytest.mark.parametrize(
    "settings", [{"model": ""}, {"speed": 0}, {"port": 70000}, {"vllm_version": "new"}, {"max_num_seqs": 0}]
)
def test_an_invalid_option_is_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(SimulatorError):
        SimulatorOptions(**{"model": "m", **settings})


@pytest.mark.parametrize(
    ("version", "legacy"), [("0.11.2", True), ("0.12.0", False), ("0.32.0", False), ("1.0", False)]
)
def test_versions_below_0_12_are_legacy(version: str, legacy: bool) -> None:
    assert SimulatorOptions("m", vllm_version=version).legacy is legacy
