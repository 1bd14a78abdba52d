"""Locks and ports that the test processes of one machine share, such as those that pytest-xdist starts."""

import fcntl
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# Above every port that the product prefers, below Linux's range for outgoing connections.
_RESERVED_PORTS = range(24_000, 32_000)
_reservations: list[IO[str]] = []  # a lock lasts as long as its file is open


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold a lock that at most one test process has, such as `ports` while a stack chooses its ports and binds them."""
    with _lock_file(name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def reserve_port() -> int:
    """Return a free loopback port that no other test process gets until this one ends.

    For servers that are killed and started again at their address: while they are down, a port that is
    merely free could be chosen by another process.
    """
    for port in _RESERVED_PORTS:
        lock = _lock_file(f"port-{port}").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
        else:
            _reservations.append(lock)
            return port
    raise AssertionError(f"no free port between {_RESERVED_PORTS.start} and {_RESERVED_PORTS.stop}")


def _lock_file(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"yyc3-tests-{name}.lock"
