"""How long a worker may be silent, and how that is noticed. Pure.

A worker renews its leases once a beat. Recovery looks once a scan at the leases that are over, and takes those that it found
twice with the same beat. A scan is longer than a beat, so a living worker moves it in between, even if the database was away
or its clock jumped. A lost worker's chunks are queued again a lease and one to two scans after its last beat: with the default
lease of 20 s, 21 to 30 s after it was lost.
"""

from datetime import timedelta

_LONGEST_BEAT = timedelta(seconds=4)
_LONGEST_SCAN = timedelta(seconds=5)


def beat(lease: timedelta) -> timedelta:
    """Between two renewals: a fifth of the lease, 4 s at most."""
    return min(lease / 5, _LONGEST_BEAT)


def scan(lease: timedelta) -> timedelta:
    """Between two looks: a quarter of the lease, 5 s at most."""
    return min(lease / 4, _LONGEST_SCAN)


__all__ = ["beat", "scan"]
