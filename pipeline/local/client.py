"""Start a supervisor and send it commands."""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from schemas.errors import InvalidSetting


class SupervisorClient:
    """A supervisor of one folder and its servers; a context manager that stops them all.

    Attributes:
        urls: of the unix sockets of `postgres` and `valkey`, as far as they were requested.
        tcp_urls: of the same on loopback, if that was asked for.

    Args:
        folder: their home.
        servers: which of the two.
        tcp: whether they listen on loopback too.
    """

    def __init__(self, folder: Path, servers: Sequence[str], *, tcp: bool = False) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidSetting(f"YYC3_HOME: {folder} cannot be made or used as a folder: {error.strerror}") from error
        self._supervisor = subprocess.Popen(
            # -P: a folder of the same name in the current one is not ours.
            [
                sys.executable,
                "-P",
                "-m",
                "pipeline.local.supervisor",
                str(folder),
                *(["--tcp"] if tcp else []),
                *servers,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches this process; the supervisor stops when its stdin ends
            text=True,
        )
        self._events: deque[dict[str, Any]] = deque()
        first = self._read()
        if first is None or "error" in first:
            self._supervisor.wait()
            reason = first["error"] if first else f"the supervisor stopped with code {self._supervisor.returncode}"
            self._close_pipes()
            raise InvalidSetting(reason)
        self.urls: Mapping[str, str] = first["urls"]
        self.tcp_urls: Mapping[str, str] = first["tcp_urls"]

    def listen(self, name: str, port: int) -> int:
        """Open a port of loopback for a child, and return it: this one, or another if it is taken.

        It stays open until the child is stopped, also while the child is started again.
        """
        self._send({"listen": name, "port": port})
        while (event := self._read()) is not None:
            if event.get("listening") == name:
                return int(event["port"])
            self._events.append(event)
        raise InvalidSetting("the supervisor is gone; everything has stopped")

    def start(self, name: str, argv: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        """Start a child; `{fd}` in its arguments becomes the descriptor of its port."""
        self._send({"start": name, "argv": list(argv), "env": dict(environment), "log": str(log)})

    def stop(self, name: str) -> None:
        """Stop one child, with SIGTERM first."""
        self._send({"stop": name})

    def kill(self, name: str) -> None:
        """Kill one child with SIGKILL; its exit is not reported."""
        self._send({"kill": name})

    def next_event(self) -> dict[str, Any] | None:
        """Wait for a line of the supervisor, see there; None when the supervisor itself is gone."""
        return self._events.popleft() if self._events else self._read()

    @property
    def has_event(self) -> bool:
        """Whether `next_event` returns at once, whatever the descriptor says."""
        return bool(self._events)

    @property
    def output(self) -> int:
        """The file descriptor that `next_event` reads, for a select."""
        assert self._supervisor.stdout is not None
        return self._supervisor.stdout.fileno()

    def close(self) -> None:
        """Stop every child and the supervisor."""
        if self._supervisor.stdin is not None and not self._supervisor.stdin.closed:
            self._supervisor.stdin.close()
        self._supervisor.wait()
        self._close_pipes()

    def _send(self, command: dict[str, Any]) -> None:
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.write(json.dumps(command) + "\n")
        self._supervisor.stdin.flush()

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
        for stream in (self._supervisor.stdin, self._supervisor.stdout):
            if stream is not None and not stream.closed:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
