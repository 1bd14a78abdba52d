"""Measure what the pipeline adds to a single job whose caller waits: submit to result, less the engine's own time.

Different intent jobs from one process, one after another (c1) and by 64 callers at once (c64). The simulator runs 1,000 times
faster than life, so that the engine is not what is measured.
"""

import asyncio
import time

from bench.setting import Idle, fast_pipeline, percentile, show
from pipeline import AsyncClient

ALONE = 300
TOGETHER = 6_400
CALLERS = 64


async def one(client: AsyncClient, number: int) -> float:
    """Return the overhead of one job in milliseconds."""
    started = time.perf_counter()
    job_id = await client.submit(
        {"kind": "intent", "text": f"我是第{number}位客户，我要退款，麻烦快一点。", "cache": False}
    )
    outcome = await client.result(job_id, timeout=60)
    seconds = time.perf_counter() - started
    assert outcome.result is not None, outcome
    assert outcome.timings.engine_seconds is not None
    return (seconds - outcome.timings.engine_seconds) * 1000


async def measure() -> dict[str, float]:
    """Measure one caller, then many."""
    async with AsyncClient() as client:
        for i in range(50):
            await one(client, -i)
        alone = [await one(client, i) for i in range(ALONE)]
        numbers = iter(range(ALONE, ALONE + TOGETHER))

        async def caller() -> list[float]:
            return [await one(client, number) for number in numbers]

        idle, started = Idle(), time.perf_counter()
        together = [value for values in await asyncio.gather(*[caller() for _ in range(CALLERS)]) for value in values]
        seconds = time.perf_counter() - started
    return {
        "overhead_ms_p50_c1": percentile(alone, 0.5),
        "overhead_ms_p99_c1": percentile(alone, 0.99),
        "overhead_ms_p50_c64": percentile(together, 0.5),
        "overhead_ms_p99_c64": percentile(together, 0.99),
        "jobs_per_second_c64": len(together) / seconds,
        "idle_share": idle.share(),
    }


def main() -> None:
    """Run it and show the figures."""
    with fast_pipeline():
        import uvloop

        numbers = uvloop.run(measure())
    show("overhead of a single job", numbers)


if __name__ == "__main__":
    main()
