"""Twenty minutes of faults: a producer submits without a pause, and every few seconds a process or a service fails.

`make soak` runs it at full length; a short form is a test. Servers, workers, recovery and the producer are real, the
engines are simulators. The last line is one JSON object; its seed draws the same faults again.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from aiohttp import web

from pipeline import AsyncClient
from schemas.errors import StoreUnavailable
from schemas.ids import JobId
from tests.support.audit import audit
from tests.support.exclusive import reserve_port
from tests.support.faulty_proxy import BATCH, CHAT, Proxy, always
from tests.support.sandbox import ROOT, wait_for
from tests.support.servers import Postgres, Valkey

MODEL = "chatglm3-6b"
LEASE_SECONDS = 4.0
_BATCH_JOBS = 1_000
_SETTLED_WITHIN_SECONDS = 180.0


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


# --- faults: each returns when it is over and everything runs again; `draw` chooses the victim


def _kill_a_worker(world: World, draw: random.Random) -> None:
    worker = draw.choice(world.workers)
    worker.kill()
    worker.start()


def _stop_a_worker_past_its_lease(world: World, draw: random.Random) -> None:
    worker = draw.choice(world.workers)
    worker.send(signal.SIGSTOP)
    time.sleep(2 * LEASE_SECONDS)
    worker.send(signal.SIGCONT)


def _kill_a_recovery(world: World, draw: random.Random) -> None:
    recovery = draw.choice(world.recoveries)
    recovery.kill()
    recovery.start()


def _lose_the_broker(world: World, draw: random.Random) -> None:
    world.valkey.end(lose_data=True)
    time.sleep(draw.uniform(0, 2))
    world.valkey.start()


def _cut_broker_connections(world: World, _: random.Random) -> None:
    world.valkey.cut()


def _restart_postgres(world: World, draw: random.Random) -> None:
    world.postgres.end()
    time.sleep(draw.uniform(0, 2))
    world.postgres.start()


def _kill_an_engine(world: World, draw: random.Random) -> None:
    engine = draw.choice(world.engines)
    engine.kill()
    time.sleep(draw.uniform(0, 2))
    engine.start()


def _storm_of_refusals(world: World, draw: random.Random) -> None:
    engine = draw.choice(world.engines)
    engine.inject({"kind": "503", "probability": 1.0})
    time.sleep(draw.uniform(1, 4))
    engine.inject()


def _slow_engine(world: World, draw: random.Random) -> None:
    engine = draw.choice(world.engines)
    engine.inject({"kind": "slow", "probability": 0.5, "seconds": 2.0})
    time.sleep(draw.uniform(1, 4))
    engine.inject()


@contextmanager
def _suspended(*processes: psutil.Process) -> Iterator[None]:
    """Stop processes with all that they started; their connections stay open, and nothing answers."""
    everything = [one for process in processes for one in (process, *process.children(recursive=True))]
    for process in everything:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in everything:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _suspend_a_recovery(world: World, draw: random.Random) -> None:
    recovery = draw.choice(world.recoveries)
    assert recovery.process is not None
    with _suspended(psutil.Process(recovery.process.pid)):
        time.sleep(2 * LEASE_SECONDS)


def _suspend_an_engine(world: World, draw: random.Random) -> None:
    process = draw.choice(world.engines).member.process
    assert process is not None
    with _suspended(psutil.Process(process.pid)):
        time.sleep(1.5 * LEASE_SECONDS)


def _suspend_postgres(world: World, _: random.Random) -> None:
    with _suspended(psutil.Process(world.postgres.pid)):
        time.sleep(1.5 * LEASE_SECONDS)


def _suspend_the_broker(world: World, _: random.Random) -> None:
    with _suspended(psutil.Process(world.valkey.pid)):
        time.sleep(1.5 * LEASE_SECONDS)


def _suspend_a_client_in_a_transaction(world: World, _: random.Random) -> None:
    """It holds the chunks that run at this moment, as a client that was stopped in the middle of something would."""
    with psycopg.connect(world.postgres.url) as connection:
        connection.execute("SELECT 1 FROM chunks WHERE state = 'running' FOR UPDATE SKIP LOCKED LIMIT 8")
        time.sleep(2 * LEASE_SECONDS)
        with suppress(psycopg.Error):
            connection.rollback()


def _lie_on_the_way(world: World, draw: random.Random) -> None:
    """Something in front of an engine answers instead of it, with what is not about the request."""
    status = draw.choice([301, 302, 307, 400, 401, 403, 404, 405, 407, 418])
    rule = always(lambda: web.Response(status=status, text="<html>", headers={"location": "https://login.example/"}))
    world.proxy.rules |= {CHAT: rule, BATCH: rule}
    time.sleep(draw.uniform(1, 3))
    world.proxy.rules.clear()


def _cut_on_the_way(world: World, draw: random.Random) -> None:
    """Something in front of an engine closes every connection under its request."""

    async def cut(request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    world.proxy.rules |= {CHAT: cut, BATCH: cut}
    time.sleep(draw.uniform(0.5, 1.5))
    world.proxy.rules.clear()


def _odd_answers(world: World, draw: random.Random) -> None:
    engine = draw.choice(world.engines)
    engine.inject({"kind": "nonsense", "probability": 0.05})
    time.sleep(draw.uniform(1, 3))
    engine.inject()


def _deploy(world: World, _: random.Random) -> None:
    for worker in world.workers:
        worker.wait_until_logged('"ready"')  # it may have been killed and started a moment ago
        before = worker.process
        worker.send(signal.SIGTERM)
        worker.start()
        assert before is not None
        assert before.wait(60) == 0, "a worker exits with 0 after SIGTERM"
        worker.wait_until_logged('"ready"')


FAULTS: dict[str, Callable[[World, random.Random], None]] = {
    "worker killed": _kill_a_worker,
    "worker stopped past its lease": _stop_a_worker_past_its_lease,
    "recovery killed": _kill_a_recovery,
    "broker restarted without its data": _lose_the_broker,
    "broker connections cut": _cut_broker_connections,
    "postgres restarted": _restart_postgres,
    "engine killed": _kill_an_engine,
    "503 storm": _storm_of_refusals,
    "slow engine": _slow_engine,
    "recovery suspended": _suspend_a_recovery,
    "engine suspended": _suspend_an_engine,
    "postgres suspended": _suspend_postgres,
    "broker suspended": _suspend_the_broker,
    "client suspended in a transaction": _suspend_a_client_in_a_transaction,
    "a proxy lies": _lie_on_the_way,
    "a proxy cuts": _cut_on_the_way,
    "odd answers": _odd_answers,
    "rolling deploy": _deploy,
}


class Producer:
    """Submits batches and single jobs at an even rate, and remembers which were accepted.

    It does what a careful caller does: each submission has a key, and is repeated when the store cannot be reached.
    """

    def __init__(self, world: World, jobs: int, seconds: float) -> None:
        self.accepted: list[JobId] = []
        self.refused = 0
        self._world = world
        self._jobs = jobs
        self._pause = seconds / max(1, jobs // _BATCH_JOBS)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._produce()), daemon=True)
        self._client = _client(world)

    def start(self) -> None:
        """Start to submit."""
        self._thread.start()

    def wait(self) -> None:
        """Wait until every job was accepted."""
        self._thread.join()

    async def _produce(self) -> None:
        async with self._client as client:
            began = time.monotonic()
            for number in range(self._jobs // _BATCH_JOBS):
                await self._batch(client, number)
                await asyncio.sleep(max(0.0, began + (number + 1) * self._pause - time.monotonic()))

    async def _batch(self, client: AsyncClient, number: int) -> None:
        single = 20
        jobs = [self._job(number, i) for i in range(_BATCH_JOBS - single)]
        batch = await self._until_accepted(lambda: client.submit_many(jobs, idempotency_key=f"batch {number}"))
        self.accepted += batch.job_ids
        for i in range(single):
            job = self._job(number, _BATCH_JOBS - single + i) | {"idempotency_key": f"job {number} {i}"}
            self.accepted.append(await self._until_accepted(lambda job=job: client.submit(job)))  # type: ignore[misc]

    def _job(self, number: int, i: int) -> dict[str, Any]:
        return {"kind": "intent", "text": f"第{number}批第{i}位客户：我要退款", "cache": False}

    async def _until_accepted(self, submit: Callable[[], Any]) -> Any:
        while True:
            try:
                return await submit()
            except StoreUnavailable:
                self.refused += 1
                await asyncio.sleep(0.2)


def _client(world: World) -> AsyncClient:
    """Make a client that knows the model of this world, and restore the environment."""
    before = os.environ.get("YYC3_MODELS_FILE")
    os.environ["YYC3_MODELS_FILE"] = str(world.folder / "models.toml")
    try:
        return AsyncClient(database_url=world.postgres.url, redis_url=world.valkey.url)
    finally:
        if before is None:
            del os.environ["YYC3_MODELS_FILE"]
        else:
            os.environ["YYC3_MODELS_FILE"] = before


class Watcher:
    """Measures the longest time without a new outcome while some were missing."""

    def __init__(self, database_url: str) -> None:
        self.longest_stall_seconds = 0.0
        self._database_url = database_url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        settled, moved = -1, time.monotonic()
        while not self._stop.wait(0.2):
            try:
                with psycopg.connect(self._database_url, connect_timeout=2) as connection:
                    row = connection.execute(
                        "SELECT coalesce(sum(succeeded + failed), 0), count(*) FILTER (WHERE state <> 'done') FROM chunks"
                    ).fetchone()
            except psycopg.Error:
                continue  # counts as a stall
            now = time.monotonic()
            assert row is not None
            if row[0] != settled or not row[1]:
                self.longest_stall_seconds = max(self.longest_stall_seconds, now - moved)
                settled, moved = row[0], now


def wait_until_settled(world: World, jobs: int) -> None:
    """Wait until every job has an outcome; when the time is over, the audit shows what is missing."""

    def settled() -> bool:
        found = audit(world.postgres.url)
        return found.jobs == jobs and not found.lost and not found.open_chunks

    with suppress(AssertionError):
        wait_for(settled, "every outcome", _SETTLED_WITHIN_SECONDS)


def inject_faults(world: World, draw: random.Random, *, seconds: float, least: int) -> tuple[Counter[str], int]:
    """Inject faults for this long, at least this many; each kind once, then each once more, in another order each time.

    Returns:
        How often each kind was injected, and how many rows were in flight at those moments together.
    """
    injected: Counter[str] = Counter()
    in_flight = 0
    deck: list[str] = []
    began = time.monotonic()
    while time.monotonic() < began + seconds or injected.total() < least:
        if not deck:
            deck = draw.sample(sorted(FAULTS), len(FAULTS))
        name = deck.pop()
        time.sleep(draw.uniform(0, seconds / least / 2))
        in_flight += world.in_flight
        _log(f"{time.monotonic() - began:6.1f} s  {name}")
        FAULTS[name](world, draw)
        injected[name] += 1
    return injected, in_flight


def soak(folder: Path, *, jobs: int, seconds: float, seed: int, least_faults: int) -> dict[str, Any]:
    """Submit jobs at an even rate for this long while faults are injected; returns what the last line shows."""
    with world(folder) as soaked:
        producer = Producer(soaked, jobs, seconds)
        began = time.monotonic()
        with Watcher(soaked.postgres.url) as watcher:
            producer.start()
            injected, in_flight = inject_faults(soaked, random.Random(seed), seconds=seconds, least=least_faults)
            producer.wait()
            wait_until_settled(soaked, len(producer.accepted))
        found = audit(soaked.postgres.url, producer.accepted)
        finished = sum(engine.finished_before + engine.state()["finished"] for engine in soaked.engines)
        states: dict[str, int] = dict(soaked.postgres.query("SELECT state, count(*) FROM outcomes GROUP BY state"))
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - began),
        "jobs": found.jobs,
        "outcomes": states,
        "faults": injected.total(),
        "faults_by_kind": dict(injected),
        "failed_unjustly": states.get("failed", 0),
        "lost": found.lost + len(producer.accepted) - found.jobs,
        "doubled": found.doubled,
        "miscounted": found.miscounted,
        "open_chunks": found.open_chunks,
        "submits_refused": producer.refused,
        "repeated_engine_calls": max(0, finished - found.jobs),
        "in_flight_at_faults": in_flight,
        "longest_stall_seconds": round(watcher.longest_stall_seconds, 1),
    }


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> int:
    """Run `make soak`; the exit code is 1 if a job was lost, doubled, miscounted or failed: every answer is good."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=1_300)
    parser.add_argument("--faults", type=int, default=200, help="at least this many")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    _log(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="yyc3-soak-") as folder:
        found = soak(Path(folder), jobs=options.jobs, seconds=options.seconds, seed=seed, least_faults=options.faults)
    sys.stdout.write(json.dumps(found) + "\n")
    return int(bool(found["lost"] or found["doubled"] or found["miscounted"] or found["failed_unjustly"]))


if __name__ == "__main__":
    sys.exit(main())
