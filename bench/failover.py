"""Kill one of three engines under load and start it again: how many jobs fail, and how soon the rate is back.

Rates are rows finished a second over all engines, as they count them themselves, in windows of half a second.
`seconds_to_two_thirds`: from the kill until the rate is two thirds of what it was. `seconds_to_full`: from the moment that
the engine answers again until the rate is 95 % of what it was. `failed`: jobs without an answer; the aim is 0.
"""

import asyncio
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import httpx

from bench.engines import Engine, chat, counted, engines, looking
from bench.setting import Idle, fast_pipeline, show
from pipeline import AsyncClient

JOBS = 5_000
MAX_NUM_SEQS = 64
SPEED = 4.0
WINDOW_SECONDS = 0.5
LONGEST_SECONDS = 30.0
STEADY_SECONDS = 5.0


class Rate:
    """Rows finished a second over the last window; an engine that restarts counts from 0."""

    def __init__(self, http: httpx.AsyncClient, urls: list[str]) -> None:
        self._http = http
        self._urls = urls
        self._last: dict[str, float] = {}
        self._seen: deque[tuple[float, float]] = deque()
        self._total = 0.0

    async def update(self) -> float:
        """Return the rate now."""
        for url in self._urls:
            finished = (await counted(self._http, [url])).finished
            self._total += max(0.0, finished - self._last.get(url, finished))
            self._last[url] = finished
        now = time.perf_counter()
        self._seen.append((now, self._total))
        while self._seen[0][0] < now - WINDOW_SECONDS:
            self._seen.popleft()
        first, count = self._seen[0]
        return (self._total - count) / (now - first) if now > first else 0.0

    async def until(self, reached: Callable[[float], bool]) -> float:
        """Return the seconds until the rate fulfils a condition."""
        started = time.perf_counter()
        while True:
            rate = await self.update()
            assert time.perf_counter() - started < LONGEST_SECONDS, "the rate is not reached; is there enough work?"
            if time.perf_counter() - started > WINDOW_SECONDS and reached(rate):
                return time.perf_counter() - started
            await asyncio.sleep(0.05)

    async def mean(self, seconds: float) -> float:
        """Return the mean rate over this time."""
        await self.update()
        started, before = time.perf_counter(), self._total
        while time.perf_counter() - started < seconds:
            await self.update()
            await asyncio.sleep(0.05)
        return (self._total - before) / (time.perf_counter() - started)


async def measure(replicas: list[Engine]) -> dict[str, float]:
    """Fill the engines, kill one, start it again, and wait for the end."""
    async with AsyncClient() as client, looking() as http:
        rate = Rate(http, [engine.url for engine in replicas])
        batch = await client.submit_many([chat(number, 128) for number in range(JOBS)])
        await rate.until(lambda now: now > 0)
        await asyncio.sleep(2)
        idle = Idle()
        usual = await rate.mean(STEADY_SECONDS)
        replicas[1].kill()
        two_thirds = await rate.until(lambda now: now >= usual * 2 / 3)
        without = await rate.mean(STEADY_SECONDS)
        await asyncio.to_thread(replicas[1].start)
        full = await rate.until(lambda now: now >= usual * 0.95)
        async for progress in client.watch_batch(batch.batch_id):
            last = progress
        return {
            "failed": JOBS - last.succeeded,
            "seconds_to_two_thirds": two_thirds,
            "seconds_to_full": full,
            "rows_per_second_of_three": usual,
            "rows_per_second_of_two": without,
            "idle_share": idle.share(),
        }


def main() -> None:
    """Run it and show the figures."""
    with (
        tempfile.TemporaryDirectory(prefix="yyc3-models-") as folder,
        engines(Path(folder), 3, speed=SPEED, max_num_seqs=MAX_NUM_SEQS) as replicas,
        fast_pipeline(),
    ):
        numbers = asyncio.run(measure(replicas))
    os.environ.pop("YYC3_MODELS_FILE")
    show("failover", numbers)


if __name__ == "__main__":
    main()
