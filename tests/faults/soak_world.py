"""What `make soak` runs its faults against: real servers, workers and recoveries, simulated engines, a proxy."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.exclusive import reserve_port
from tests.support.faulty_proxy import Proxy
from tests.support.sandbox import ROOT, wait_for
from tests.support.servers import Postgres, Valkey

MODEL = "chatglm3-6b"
LEASE_SECONDS = 4.0


@dataclass
class Member:
    """One process of the pipeline, or one engine."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    folder: Path
    process: "subprocess.Popen[bytes] | None" = None
    starts: int = 0

    @property
    def log(self) -> Path:
        """The log since its last start."""
        return self.folder / f"{self.name}-{self.starts}.log"

    def start(self) -> None:
        """Start it, also again."""
        self.starts += 1
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.arguments], stdout=output, stderr=output, env=self.environment, cwd=ROOT
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """Send SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def wait_until_logged(self, text: str) -> None:
        """Wait for a text in its log."""

        def logged() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"{self.name} ended: {self.log.read_text(errors='replace')[-2_000:]}"
            return text in self.log.read_text(errors="replace")

        wait_for(logged, f"{text!r} in {self.log}", 120)


@dataclass
class Engine:
    """A simulator that keeps its address, and what it finished before its restarts."""

    member: Member
    url: str
    finished_before: int = 0

    def state(self) -> dict[str, int]:
        """Return its own counters, zeros while it is away."""
        try:
            found: dict[str, int] = httpx.get(f"{self.url}/simulator/state", timeout=2, trust_env=False).json()
        except httpx.HTTPError:
            return Counter()
        return found

    @property
    def in_flight(self) -> int:
        """Rows that it runs or queues."""
        state = self.state()
        return state["running"] + state["waiting"]

    def kill(self) -> None:
        """Send SIGKILL, and remember what it finished."""
        self.finished_before += self.state()["finished"]
        self.member.kill()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.member.start()
        wait_for(self.state, f"the engine at {self.url}", 120)

    def inject(self, *faults: dict[str, Any]) -> None:
        """Fail like this from now on; without faults, succeed again."""
        httpx.put(f"{self.url}/simulator/faults", json={"faults": faults}, timeout=30, trust_env=False)


@dataclass
class World:
    """Everything that a fault can hit."""

    folder: Path
    postgres: Postgres
    valkey: Valkey
    proxy: Proxy
    engines: list[Engine] = field(default_factory=list)
    workers: list[Member] = field(default_factory=list)
    recoveries: list[Member] = field(default_factory=list)

    @property
    def in_flight(self) -> int:
        """Rows in all engines."""
        return sum(engine.in_flight for engine in self.engines)

    def member(self, name: str, *arguments: str) -> Member:
        """Describe a process that finds the others."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("YYC3_", "AI_"))} | {
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self.valkey.url,
            "YYC3_HOME": str(self.folder),
            "YYC3_MODELS_FILE": str(self.folder / "models.toml"),
            "YYC3_LEASE_SECONDS": str(LEASE_SECONDS),
            "YYC3_DRAIN_SECONDS": "3",
            "AI_TIMEOUT_MS": "8000",
            "PYTHONUNBUFFERED": "1",
        }
        return Member(name, list(arguments), environment, self.folder)


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """Run two engines of one model, two bulk workers, an interactive one and two recoveries."""
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres(folder / "postgres"))
        valkey = stack.enter_context(Valkey(folder / "valkey"))
        proxy = stack.enter_context(Proxy(""))
        made = World(folder, postgres, valkey, proxy)

        def end() -> None:
            members = [engine.member for engine in made.engines] + made.workers + made.recoveries
            for member in members:
                if member.process is not None and member.process.poll() is None:
                    member.kill()

        stack.callback(end)
        for number in range(2):
            port = reserve_port()
            arguments = ["--model", MODEL, "--port", str(port), "--speed", "2", "--max-num-seqs", "128"]
            engine = Engine(made.member(f"engine-{number}", "simulator", *arguments), f"http://127.0.0.1:{port}")
            engine.start()
            made.engines.append(engine)
        proxy.target = made.engines[1].url
        (folder / "models.toml").write_text(
            f'[models.{MODEL}]\nkinds = ["chat", "intent", "sentiment"]\nport = 1\nmax_num_seqs = 128\n'
            f"endpoints = {json.dumps([made.engines[0].url, proxy.url])}\n"
        )
        for number, lane in enumerate(("bulk", "bulk", "interactive")):
            made.workers.append(made.member(f"worker-{number}", "workers.main", lane, MODEL))
        made.recoveries = [made.member(f"recover-{number}", "pipeline.cli", "recover") for number in range(2)]
        for member in (*made.workers, *made.recoveries):
            member.start()
        for member in made.workers:
            member.wait_until_logged('"ready"')
        yield made
