"""What `yyc3 up` writes down in its home, so that any command beside it finds its servers."""

import fcntl
import os
from pathlib import Path

from pydantic import BaseModel, ValidationError


class Running(BaseModel):
    """Addresses of a running `yyc3 up`; the file has mode 0600, its URLs carry passwords."""

    database_url: str
    redis_url: str
    flower_url: str | None = None
    simulated: dict[str, str] = {}


def write_running(home: Path, running: Running) -> None:
    """Write the file whole or not at all."""
    half = home / "running.json.new"
    descriptor = os.open(half, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(running.model_dump_json())
    half.rename(home / "running.json")


def find_running(home: Path) -> Running | None:
    """The addresses, if a guard holds the home's lock right now."""
    try:
        with (home / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None  # nobody holds it: what the file says is of the past
    except BlockingIOError:
        pass
    except OSError:
        return None
    try:
        return Running.model_validate_json((home / "running.json").read_text())
    except (OSError, ValidationError):
        return None  # a guard that is just starting


__all__ = ["Running", "find_running", "write_running"]
