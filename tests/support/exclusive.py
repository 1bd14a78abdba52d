"""Locks between the processes of one test run, which pytest-xdist starts."""

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold a lock that at most one test process has, such as `ports` while a stack chooses its ports and binds them."""
    with (Path(tempfile.gettempdir()) / f"yyc3-tests-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
