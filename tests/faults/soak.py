"""Twenty minutes of faults: a producer submits without a pause, and every few seconds a process or a service fails.

`make soak` runs it at full length; a short form is a test. Servers, workers, recovery and the producer are real, the
engines are simulators. The last line is one JSON object; its seed draws the same faults again.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from pipeline import AsyncClient
from schemas.errors import StoreUnavailable
from schemas.ids import JobId
from tests.faults.soak_faults import FAULTS
from tests.faults.soak_world import World, world
from tests.support.audit import audit
from tests.support.sandbox import wait_for

_BATCH_JOBS = 1_000
_SETTLED_WITHIN_SECONDS = 180.0


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
