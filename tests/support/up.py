"""A running `yyc3 up` in a home of its own, with no setting of the machine that runs the test."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.support.exclusive import exclusive
from tests.support.sandbox import ROOT, wait_for

SIMULATED = ("--simulate", "--speed", "100")


class Up:
    """A context manager; it is ready when it is entered.

    Args:
        home: of the `yyc3 up`.
        options: of the command.
        environment: more variables of it, which other commands do not get.
    """

    def __init__(self, home: Path, *options: str, **environment: str) -> None:
        self.home = home
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("YYC3_", "AI_")) and not key.endswith("_URL")
        } | {"YYC3_HOME": str(home)}
        self._options = options
        self._environment = {**self.environment, **environment}
        self.log = home.parent / "up.log"
        self.printed = home.parent / "up.out"

    def __enter__(self) -> "Up":
        with exclusive("ports"):
            self.start()
        assert self.process.poll() is None, self.said
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it; it is ready when this returns."""
        with self.log.open("ab") as output, self.printed.open("wb") as printed:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "up", *self._options],
                env=self._environment,
                cwd=ROOT,
                stdout=printed,
                stderr=output,
            )
        wait_for(lambda: "ready" in self.printed.read_text() or self.process.poll() is not None, "up")

    def stop(self) -> int:
        """Stop it as Ctrl-C does and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(90)

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self.log.read_text() + self.printed.read_text()

    def run(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run another command of ours beside it."""
        command = [sys.executable, "-m", "pipeline.cli", *arguments]
        return subprocess.run(
            command, env={**self.environment, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=120
        )

    def yyc3(self, *arguments: str, **environment: str) -> str:
        """Run another command of ours that succeeds, and return what it printed."""
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def find(self, part: str) -> psutil.Process | None:
        """Find a process of it by a part of its arguments."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next((child for child in children if re.search(part, " ".join(child.cmdline()))), None)

    def kill(self, part: str) -> None:
        """Kill the process whose arguments have this part, as a crash would."""
        found = wait_for(lambda: self.find(part), f"a process of {part}")
        assert found is not None
        found.kill()


class Command:
    """A command of ours that runs beside it."""

    def __init__(self, up: Up, *arguments: str) -> None:
        self._log = up.home.parent / "command.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", *arguments],
                env=up.environment,
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self._log.read_text()

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        return self._process.wait(240)
