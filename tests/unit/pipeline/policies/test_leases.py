"""How often leases are renewed and looked at."""

from datetime import timedelta

import pytest

from pipeline.policies.leases import renewal_interval, scan_interval


def test_a_default_lease_is_renewed_each_4_s_and_looked_at_each_5_s() -> None:
    lease = timedelta(seconds=20)
    assert renewal_interval(lease) == timedelta(seconds=4)
    assert scan_interval(lease) == timedelta(seconds=5)


@pytest.mark.parametrize("seconds", [1, 7, 20, 60, 3_600])
def test_a_lease_is_renewed_between_two_looks_of_recovery(seconds: int) -> None:
    lease = timedelta(seconds=seconds)
    assert renewal_interval(lease) < scan_interval(lease) < lease
