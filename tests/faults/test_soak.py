"""The short form of `make soak`: each fault once, and nothing lost or doubled."""

from pathlib import Path

import pytest

from tests.faults.soak import FAULTS, soak


@pytest.mark.timeout(400)
def test_a_minute_of_bad_weather_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    found = soak(tmp_path, jobs=15_000, seconds=45, seed=7, least_faults=len(FAULTS))
    assert found["faults_by_kind"] == dict.fromkeys(FAULTS, 1) or found["faults"] > len(FAULTS)
    assert (found["jobs"], found["lost"], found["doubled"], found["miscounted"], found["open_chunks"]) == (
        15_000,
        0,
        0,
        0,
        0,
    ), found
    assert found["outcomes"] == {"succeeded": 15_000}, found
    assert found["repeated_engine_calls"] <= found["in_flight_at_faults"], found
