"""How often leases are renewed, and how often recovery looks for those that were not renewed. Pure.

A worker renews its leases once every renewal interval. Recovery looks once every scan interval at the
expired leases, and requeues the runs whose lease it saw twice with the same end. A scan interval is
longer than a renewal interval, so a living worker moves the end in between, even if the database was
unavailable or its clock jumped. The chunks of a lost worker are queued again one lease and one to two
scan intervals after its last renewal: with the default lease of 20 s, 21 to 30 s after it was lost.
"""

from datetime import timedelta

_LONGEST_RENEWAL_INTERVAL = timedelta(seconds=4)
_LONGEST_SCAN_INTERVAL = timedelta(seconds=5)


def renewal_interval(lease: timedelta) -> timedelta:
    """Return the time between two renewals: a fifth of the lease, 4 s at most."""
    return min(lease / 5, _LONGEST_RENEWAL_INTERVAL)


def scan_interval(lease: timedelta) -> timedelta:
    """Return the time between two looks of recovery: a quarter of the lease, 5 s at most."""
    return min(lease / 4, _LONGEST_SCAN_INTERVAL)
