"""What `yyc3 up` stores in its home, so that other commands find its servers and know its models."""

import fcntl
from pathlib import Path

from pydantic import BaseModel, ValidationError

from pipeline.files import replace_file


class StackAddresses(BaseModel):
    """A running `yyc3 up`; the file has mode 0600, because it has passwords.

    Attributes:
        simulated: URLs of simulators, by model.
        tcp_urls: `database_url` and `redis_url` on loopback, with `--tcp`.
        settings: what it was told and others need to know, see Settings.shared.
    """

    database_url: str
    redis_url: str
    flower_url: str | None = None
    simulated: dict[str, str] = {}
    tcp_urls: dict[str, str] = {}
    settings: dict[str, str] = {}


def addresses_file(home: Path) -> Path:
    """Return the file that has them."""
    return home / "running.json"


def write_stack_addresses(home: Path, running: StackAddresses) -> None:
    """Write the file."""
    replace_file(addresses_file(home), running.model_dump_json().encode())


def find_stack_addresses(home: Path) -> StackAddresses | None:
    """Return the addresses, if a supervisor holds the lock of the home now."""
    try:
        with (home / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None  # no supervisor holds it: the file is of an earlier one
    except BlockingIOError:
        pass
    except OSError:
        return None
    try:
        return StackAddresses.model_validate_json(addresses_file(home).read_text())
    except (OSError, ValidationError):
        return None  # the supervisor is still starting
