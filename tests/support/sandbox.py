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
from urllib.parse import urlsplit

import httpx
import psycopg

from pipeline.local.client import SupervisorClient
from pipeline.store.connecting import ROLE_SETTINGS, parse_url
from pipeline.store.schema import migrate

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
T = TypeVar("T")


def wait_for(
    condition: Callable[[], T],
    what: str,
    seconds: float = 60.0,
    *,
    ignoring: type[Exception] | tuple[type[Exception], ...] = (),
) -> T:
    """Return the first true value of a condition.

    Args:
        condition: evaluated every 20 ms.
        what: names what the test waits for when the time is over.
        seconds: bounds the wait of a test that fails; it is not a promise of the product.
        ignoring: exceptions of the condition that mean "not yet".
    """
    end = time.monotonic() + seconds
    while True:
        problem: Exception | None = None
        try:
            value = condition()
            if value:
                return value
        except ignoring as error:
            problem = error
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}" + (f": {problem}" if problem else "")
        time.sleep(0.02)


@dataclass
class Sandbox:
    """A database and a Redis of one test, and the environment that leads to them; `admin_url` is the superuser's."""

    database_url: str
    redis_url: str
    home: Path
    admin_url: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("YYC3_", "AI_"))},
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "YYC3_HOME": str(self.home),
        }

    def query(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Execute a statement in the database and return its rows."""
        address = parse_url(self.database_url)
        with psycopg.connect(address.url, autocommit=True, **address.arguments()) as connection:
            cursor = connection.execute(statement, arguments)
            return cursor.fetchall() if cursor.description else []

    def settled(self) -> int:
        """Count the outcomes."""
        return int(self.query("SELECT count(*) FROM outcomes")[0][0])

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
        """Run a process of ours, and end it on exit if it still runs; its output is in `log`.

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
        """Run a Celery worker; it consumes doorbells when this returns."""
        with self.process("workers.main", lane, *(models or ("chatglm3-6b",)), cwd=cwd, **environment) as started:
            started.wait_until_ready(f"the {lane} worker")
            yield started

    @contextmanager
    def simulator(self, *arguments: str, model: str = "chatglm3-6b", speed: float = 100) -> Iterator["Simulator"]:
        """Run a simulator; the environment names it as the model's endpoint."""
        with self.process("simulator", "--model", model, "--port", "0", "--speed", str(speed), *arguments) as started:
            found = started.wait_until_logged(r"http://[\d.]+:\d+", "the simulator")
            self.environment |= {"AI_BASE_URL": found[0], "AI_MODEL": model}
            yield Simulator(found[0], started)


@dataclass
class Started:
    """A process and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def logged(self, pattern: str) -> re.Match[str] | None:
        """Find a pattern in the log."""
        return re.search(pattern, self.text)

    def wait_until_logged(self, pattern: str, what: str) -> re.Match[str]:
        """Wait for a pattern in the log; fails at once, with the log, if the process ends without it."""
        wait_for(lambda: self.logged(pattern) or self.ended, what)
        found = self.logged(pattern)  # it may have been written just before the end
        assert found is not None, self.text
        return found

    def wait_until_ready(self, what: str) -> None:
        """Wait until a worker process consumes messages."""
        self.wait_until_logged(r"\"event\": ?\"ready\"", what)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()
        self.process.wait()

    def terminate(self, seconds: float = 60) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@dataclass
class Simulator:
    """A simulator's address and process."""

    url: str
    started: Started

    def state(self) -> dict[str, int]:
        """Return its counters: requests, rows, and the running, finished and aborted ones."""
        found: dict[str, int] = httpx.get(f"{self.url}/simulator/state").json()
        return found

    def inject_faults(self, *faults: str) -> None:
        """Fail from now on as `KIND[:PROBABILITY[:SECONDS]]` describes; without faults, succeed again."""
        parts = [fault.split(":") for fault in faults]
        entries = [
            {
                "kind": kind,
                "probability": float(rest[0]) if rest else 1.0,
                "seconds": float(rest[1]) if rest[1:] else None,
            }
            for kind, *rest in parts
        ]
        httpx.put(f"{self.url}/simulator/faults", json={"faults": entries}).raise_for_status()

    def script_answers(self, *lines: dict[str, Any]) -> None:
        """Answer from now on as these lines describe; the first one that fits decides."""
        httpx.put(f"{self.url}/simulator/answers", json={"answers": lines}).raise_for_status()


def admin_url(folder: Path, url: str) -> str:
    """Return the URL of the superuser, whom the product never uses, at the server of this folder."""
    password = (folder / "postgres.password").read_text()
    return f"postgresql://yyc3:{password}@{url.rpartition('@')[2]}"


def new_database(servers: SupervisorClient, name: str, template: str | None = None) -> str:
    """Create a database with our tables, copied from a template if one is given."""
    url = servers.tcp_urls["postgres"]
    role = urlsplit(url).username
    with psycopg.connect(admin_url(servers.folder, url), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} OWNER {role}" + (f" TEMPLATE {template}" if template else ""))
        for setting, value in ROLE_SETTINGS.items() if template else ():  # a copy does not have them
            connection.execute(f"ALTER ROLE {role} IN DATABASE {name} SET {setting} = '{value}'")
    made = url.rsplit("/", 1)[0] + f"/{name}"
    if template is None:
        migrate.upgrade(made)
    return made


def drop_database(servers: SupervisorClient, name: str) -> None:
    """Drop a database, whoever is connected to it."""
    with psycopg.connect(admin_url(servers.folder, servers.tcp_urls["postgres"]), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
