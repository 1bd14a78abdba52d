"""Measure how full the pipeline keeps an engine: its output tokens a second over those of the best direct client.

The same simulator (256 slots, a few times faster than life) is driven in turns by an asyncio client that does nothing
else, with several numbers of requests in flight, and by the pipeline with one and with four bulk workers. Counted are the
tokens that the engine itself reports, from its first to its last. Rows are unique, the cache is off. With `--vllm URL` a
real vLLM replaces the simulator (short answers; it is slow on a CPU).
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from bench.engines import (
    MAX_NUM_SEQS,
    Direct,
    chat,
    counted,
    engines,
    intent,
    looking,
    more_workers,
    sentiment,
    write_models,
)
from bench.setting import Idle, fast_pipeline, show
from pipeline import AsyncClient

_numbers = count()
Job = dict[str, Any]


def _mix(number: int) -> Job:
    return intent(number) if number % 4 else chat(number, 128)


WORKLOADS: dict[str, tuple[Callable[[int], Job], int, float]] = {
    # one job, how many in the sweep, how much faster than life
    "intent": (intent, 1_500, 2.0),
    "chat": (lambda number: chat(number, 128 + number * 37 % 256), 1_280, 4.0),
    "mix": (_mix, 1_500, 3.0),
}
REAL: dict[str, tuple[Callable[[int], Job], int, float]] = {
    "classify": (sentiment, 1_000, 1.0),
    "chat": (lambda number: chat(number, 64), 150, 1.0),
}
CONCURRENCY = (MAX_NUM_SEQS // 2, MAX_NUM_SEQS, MAX_NUM_SEQS + MAX_NUM_SEQS // 4, 2 * MAX_NUM_SEQS)
ROUNDS = 2
LONGER = 3  # times as many jobs as in the sweep, so that beginning and end weigh less


async def tokens_per_second(url: str, jobs: int, run: Callable[[], Awaitable[None]]) -> float:
    """Return the tokens a second that the engine generated, from its first row until all were done."""
    async with looking() as http:
        before = await counted(http, [url])
        work = asyncio.ensure_future(run())
        started = None
        while True:
            now = await counted(http, [url])
            if started is None and (now.running or now.finished > before.finished):
                started = time.perf_counter()
            if now.finished >= before.finished + jobs:
                break
            if work.done():
                work.result()
            await asyncio.sleep(0.02)
        seconds = time.perf_counter() - (started or 0.0)
        await work
        return (now.tokens - before.tokens) / seconds


async def through(jobs: list[Job]) -> None:
    """Run jobs through the pipeline."""
    async with AsyncClient() as client:
        batch = await client.submit_many(jobs)
        async for progress in client.watch_batch(batch.batch_id):
            last = progress
        assert last.finished, last


def fresh(make: Callable[[int], Job], number: int) -> list[Job]:
    """Make jobs that were not used before."""
    return [make(next(_numbers)) for _ in range(number)]


def measure(url: str, make: Callable[[int], Job], jobs: int, workers: int) -> dict[str, float]:
    """Sweep the direct client, then measure both in turns."""

    def direct(concurrency: int, many: int) -> float:
        return asyncio.run(tokens_per_second(url, many, lambda: Direct(url, concurrency).run(fresh(make, many))))

    swept = {concurrency: direct(concurrency, jobs) for concurrency in CONCURRENCY}
    best = max(swept, key=lambda concurrency: swept[concurrency])
    ours: list[float] = []
    theirs: list[float] = []
    idle, many = Idle(), LONGER * jobs
    for _ in range(ROUNDS):
        mine = fresh(make, many)
        ours.append(asyncio.run(tokens_per_second(url, many, lambda mine=mine: through(mine))))  # type: ignore[misc]
        theirs.append(direct(best, many))
    return {
        f"direct_tokens_per_second_at_{best}": median(theirs),
        "pipeline_tokens_per_second": median(ours),
        "ratio": median(ours) / median(theirs),
        "workers": workers,
        "idle_share": idle.share(),
    }


def main() -> None:
    """Run each workload with one and with four workers."""
    real = sys.argv[sys.argv.index("--vllm") + 1] if "--vllm" in sys.argv else None
    workloads = REAL if real else WORKLOADS
    chosen = [name for name in workloads if name in sys.argv] or list(workloads)
    numbers: dict[str, Any] = {}
    for workload in chosen:
        make, jobs, speed = workloads[workload]
        for workers in (1,) if real else (1, 4):
            with tempfile.TemporaryDirectory(prefix="yyc3-models-") as folder:
                if real:
                    write_models(Path(folder), [real], MAX_NUM_SEQS, 512)
                    with fast_pipeline():
                        found = measure(real, make, jobs, workers)
                else:
                    with engines(Path(folder), 1, speed=speed) as (engine,), fast_pipeline() as stack:
                        more_workers(stack, workers - 1)
                        found = measure(engine.url, make, jobs, workers)
                os.environ.pop("YYC3_MODELS_FILE")
            numbers |= {f"{workload}_{workers}w_{name}": value for name, value in found.items() if name != "workers"}
            show(f"engine fill: {workload}, {workers} workers", found)
    show("engine fill", numbers)


if __name__ == "__main__":
    main()
