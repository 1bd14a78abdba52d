"""`yyc3 up` when its parts die: everything is started again, and said."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.exclusive import exclusive
from tests.support.sandbox import ROOT, wait_for


class Up:
    """A running `yyc3 up --simulate` in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("YYC3_", "AI_"))},
            "YYC3_HOME": str(home),
        }
        for name in ("DATABASE_URL", "REDIS_URL"):
            self.environment.pop(name, None)
        self.log = home.parent / "up.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "up", "--simulate", "--speed", "100"],
                env=self.environment,
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def yyc3(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "pipeline.cli", *arguments]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def kill(self, part: str) -> None:
        """Kill the process whose arguments have this part, as a crash would."""
        found = wait_for(lambda: self._find(part), f"a process of {part}")
        assert found is not None
        found.kill()

    def _find(self, part: str) -> psutil.Process | None:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next((child for child in children if re.search(part, " ".join(child.cmdline()))), None)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with exclusive("ports"):
        running = Up(tmp_path / "home")
        wait_for(lambda: "ready " in running.said or running.process.poll() is not None, "up")
    assert running.process.poll() is None, running.said
    yield running
    running.process.send_signal(signal.SIGINT)
    running.process.wait(90)


def test_servers_and_workers_that_die_are_started_again_as_often_as_it_takes(up: Up) -> None:
    submit = ("submit", "sentiment", "--text", "谢谢", "--wait", "--timeout", "60")
    up.yyc3(*submit)
    for server, part in (("valkey", r"valkey-server"), ("postgres", r"bin/postgres -D")):
        up.kill(part)
        wait_for(lambda server=server: f"{server} runs again" in up.said, f"{server} to run again")  # type: ignore[misc]
        assert "positive" in up.yyc3(*submit)
    for times in (1, 2, 3):
        up.kill(r"workers\.main interactive")
        wait_for(lambda times=times: up.said.count("worker-interactive exited") == times, "the loss of the worker")  # type: ignore[misc]
    assert "stays down" not in up.said
    assert "positive" in up.yyc3(*submit)
