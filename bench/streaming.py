"""Measure what the pipeline adds to the first token of a streamed chat: submit to first text, less the engine's time.

64 readers in one process each stream one answer of 128 to 383 tokens after another from a life-like simulator; then a
thousand answers are streamed at once from an engine with a slot for each. Every text is compared with the stored one. CPU
time is that of the worker and of the reader for each token.
"""

import asyncio
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import psutil

from bench.setting import Idle, cpu_seconds, fast_pipeline, percentile, processes_of, show
from pipeline import AsyncClient
from pipeline.models import DEFAULT_FILE
from schemas.results import ChatResult
from schemas.streams import EndEvent, RestartEvent, TextEvent

READERS = 64
ANSWERS_A_READER = 4
AT_ONCE = 1_000


async def one(client: AsyncClient, number: int) -> tuple[float, int]:
    """Return the milliseconds added to the first token, and the tokens of the answer, which must be the stored text."""
    job = {
        "kind": "chat",
        "messages": [{"role": "user", "content": f"我是第{number}位客户，我的包裹到哪里了？"}],
        "sampling": {"max_tokens": 128 + number * 37 % 256},
    }
    started = time.perf_counter()
    first, text = None, ""
    async for event in client.stream(job):
        match event:
            case TextEvent():
                first = time.perf_counter() - started if first is None else first
                text += event.text
            case RestartEvent():
                raise AssertionError("no attempt should fail here")
            case EndEvent(outcome=outcome):
                assert isinstance(outcome.result, ChatResult), outcome
                assert outcome.result.text == text
                assert first is not None
                assert outcome.timings.first_token_seconds is not None
                return (first - outcome.timings.first_token_seconds) * 1000, outcome.usage.completion_tokens or 0
    raise AssertionError("the stream did not end")


async def readers(client: AsyncClient, offset: int) -> list[tuple[float, int]]:
    """Run 64 readers, each with one answer after another."""
    numbers = iter(range(offset, offset + READERS * ANSWERS_A_READER))

    async def reader() -> list[tuple[float, int]]:
        return [await one(client, number) for number in numbers]

    return [found for several in await asyncio.gather(*[reader() for _ in range(READERS)]) for found in several]


async def measure(worker: list[psutil.Process]) -> dict[str, float]:
    """Measure 64 readers, then a thousand."""
    async with AsyncClient() as client:
        await asyncio.gather(*[one(client, -i) for i in range(READERS)])
        idle = Idle()
        added = sorted(milliseconds for milliseconds, _ in await readers(client, 0))
        idle_share = idle.share()
        idle, own, before = Idle(), psutil.Process(), cpu_seconds(worker)
        own_before, started = cpu_seconds([own]), time.perf_counter()
        many = await asyncio.gather(*[one(client, 100_000 + i) for i in range(AT_ONCE)])
        seconds, tokens = time.perf_counter() - started, sum(count for _, count in many)
    return {
        "overhead_ms_p50": percentile(added, 0.5),
        "overhead_ms_p99": percentile(added, 0.99),
        "idle_share": idle_share,
        "streams_at_once": AT_ONCE,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "worker_us_per_token": (cpu_seconds(worker) - before) / tokens * 1e6,
        "reader_us_per_token": (cpu_seconds([own]) - own_before) / tokens * 1e6,
        "idle_share_at_once": idle.share(),
    }


def main() -> None:
    """Run it and show the figures."""
    import uvloop

    with TemporaryDirectory(prefix="yyc3-bench-") as folder:
        models, answers = Path(folder) / "models.toml", Path(folder) / "answers.jsonl"
        answers.write_bytes(orjson.dumps({"when": "", "answer": "您的包裹正在配送途中。" * 100}))
        models.write_text(
            DEFAULT_FILE.read_text(encoding="utf-8").replace(
                "max_num_seqs = 256", f"max_num_seqs = {AT_ONCE + READERS}"
            )
        )
        os.environ["YYC3_MODELS_FILE"] = str(models)
        with fast_pipeline(speed=1.0, simulator_arguments=("--answers", str(answers))) as stack:
            numbers = uvloop.run(measure(processes_of(stack, "workers.main interactive")))
    show("streamed answers", numbers)


if __name__ == "__main__":
    main()
