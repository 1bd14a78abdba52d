"""Real servers and processes for tests, started as a user starts them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg

from pipeline.store.schema import migrate

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, seconds: float = 30.0) -> T:
    """The first true value of a condition, looked at often; fails with what was waited for."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.02)


@dataclass
class Sandbox:
    """A database and a Redis of one test, and the environment that leads there."""

    database_url: str
    redis_url: str
    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("YYC3_", "AI_"))},
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "YYC3_HOME": str(self.home),
        }

    def query(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Look into the database directly."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement, arguments)
            return cursor.fetchall() if cursor.description else []

    def yyc3(self, *arguments: str, check: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ours to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *arguments],
            capture_output=True,
            text=True,
            env={**self.environment, **environment},
            cwd=ROOT,
            timeout=120,
        )
        assert check is None or done.returncode == check, (
            f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    @contextmanager
    def process(self, *arguments: str, cwd: Path = ROOT, **environment: str) -> Iterator["Started"]:
        """A process of ours; ended at the end if it is still there. Its output is in `log`.

        `cwd` is the checkout whose code it runs.
        """
        log = self.home / f"{'-'.join(arguments)[:60].replace('/', '_')}-{time.monotonic_ns()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=output,
                stderr=output,
                env={**self.environment, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(cwd), **environment},
                cwd=cwd,
                start_new_session=True,
            )
        started = Started(process, log)
        try:
            yield started
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    @contextmanager
    def worker(self, lane: str, *models: str, cwd: Path = ROOT, **environment: str) -> Iterator["Started"]:
        """A Celery worker that takes doorbells."""
        with self.process("workers.main", lane, *(models or ("chatglm3-6b",)), cwd=cwd, **environment) as started:
            wait_for(lambda: started.says(r"\"event\": ?\"ready\"") or started.ended, f"the {lane} worker")
            assert not started.ended, started.text
            yield started

    @contextmanager
    def simulator(self, *arguments: str, model: str = "chatglm3-6b", speed: float = 100) -> Iterator["Simulator"]:
        """A simulator; the environment names it as the model's endpoint."""
        with self.process("simulator", "--model", model, "--port", "0", "--speed", str(speed), *arguments) as started:
            found = wait_for(lambda: started.says(r"http://[\d.]+:\d+") or started.ended, "the simulator")
            assert isinstance(found, re.Match), started.text
            self.environment |= {"AI_BASE_URL": found[0], "AI_MODEL": model}
            yield Simulator(found[0], started)


@dataclass
class Started:
    """A process and what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def says(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.text)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def terminate(self, seconds: float = 30) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@dataclass
class Simulator:
    """A simulator's address and process."""

    url: str
    started: Started

    def state(self) -> dict[str, int]:
        """Counts of requests, rows, running and aborted ones."""
        found: dict[str, int] = httpx.get(f"{self.url}/simulator/state").json()
        return found


def new_database(server_url: str, name: str, template: str | None = None) -> str:
    """A database of its own, with our tables; copied from a template where there is one."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
    url = server_url.rsplit("/", 1)[0] + f"/{name}"
    if template is None:
        migrate.upgrade(url)
    return url
