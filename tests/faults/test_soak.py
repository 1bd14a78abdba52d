"""The short form of `make soak`: each fault once, and no job is lost or doubled."""

from pathlib import Path

import pytest

from tests.faults.soak import soak
from tests.faults.soak_faults import FAULTS

JOBS = 8_000


@pytest.mark.timeout(400)
def test_each_fault_under_load_loses_no_job_and_doubles_none(tmp_path: Path) -> None:
    found = soak(tmp_path, jobs=JOBS, seconds=25, seed=7, least_faults=len(FAULTS))
    assert found["faults_by_kind"] == dict.fromkeys(FAULTS, 1) or found["faults"] > len(FAULTS)
    kept = {name: found[name] for name in ("jobs", "lost", "doubled", "miscounted", "open_chunks")}
    assert kept == {"jobs": JOBS, "lost": 0, "doubled": 0, "miscounted": 0, "open_chunks": 0}, found
    assert found["outcomes"] == {"succeeded": JOBS}, found
    assert found["repeated_engine_calls"] <= found["in_flight_at_faults"], found
