"""Starting a guard and talking to it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from schemas.errors import InvalidSetting


class Home:
    """A guard on a folder, with its servers; a context manager that stops them all.

    Attributes:
        urls: `postgres` and `valkey`, as far as they were asked for.
    """

    def __init__(self, folder: Path, servers: Sequence[str]) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "pipeline.local.supervisor", str(folder), *servers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches us; the guard stops when we say so
            text=True,
        )
        first = self._read()
        if first is None or "error" in first:
            self._guard.wait()
            reason = first["error"] if first else f"the guard stopped with code {self._guard.returncode}"
            self._close_pipes()
            raise InvalidSetting(reason)
        self.urls: Mapping[str, str] = first["urls"]

    def start(self, name: str, argv: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        """Start a child under the guard."""
        self._order({"start": name, "argv": list(argv), "env": dict(environment), "log": str(log)})

    def stop(self, name: str) -> None:
        """Stop one child, politely first."""
        self._order({"stop": name})

    def kill(self, name: str) -> None:
        """Kill -9 one child; its end is not reported."""
        self._order({"kill": name})

    def next_exit(self) -> tuple[str, int] | None:
        """Wait until a child ends by itself; None when the guard itself is gone."""
        line = self._read()
        return None if line is None else (line["exited"], line["code"])

    @property
    def output(self) -> int:
        """The file descriptor that `next_exit` reads, for a select."""
        assert self._guard.stdout is not None
        return self._guard.stdout.fileno()

    def close(self) -> None:
        """Stop every child and the guard."""
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._guard.stdin.close()
        self._guard.wait()
        self._close_pipes()

    def _order(self, order: dict[str, Any]) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.write(json.dumps(order) + "\n")
        self._guard.stdin.flush()

    def _read(self) -> dict[str, Any] | None:
        # Unbuffered, a byte at a time: a buffered reader would hide lines from a select.
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self.output, 1)
            if not byte:
                return None
            line += byte
        found: dict[str, Any] = json.loads(line)
        return found

    def _close_pipes(self) -> None:
        for stream in (self._guard.stdin, self._guard.stdout):
            if stream is not None and not stream.closed:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


__all__ = ["Home"]
