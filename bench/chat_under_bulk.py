"""Measure how bulk work delays chats: alone, beside our bulk lane, and beside ungated bulk, of chats and of classification.

A life-like simulator with 256 slots answers two chats a second, each with a history of a usual length, streamed to a
reader: first without other work; then beside the pipeline's own bulk lane; then beside an asyncio client that keeps four
times 256 rows in flight without a priority. Bulk is chats, whose slots matter, then intents, whose prompts stretch every
step of the engine. Figures are the first token, the whole answer of 64 tokens, the share of all tokens that the engine gave
within 50 ms of the one before (its own histogram), and `kept`: rows or tokens a second of gated bulk over those of ungated.
"""

import asyncio
import os
import re
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx

from bench.engines import MAX_NUM_SEQS, Direct, Engine, chat, counted, engines, intent, looking
from bench.setting import Idle, fast_pipeline, percentile, show
from pipeline import AsyncClient, Batch
from schemas.streams import TextEvent

CHATS = 80
CHATS_A_SECOND = 2.0
WARM_SECONDS = 15.0
BULK_CHATS, BULK_INTENTS = 1_000, 4_000  # in a batch, of which two are in the pipeline
HISTORY = [
    ("user", "你好，我上周在你们这里买的洗衣机到现在还没有送到，订单显示已经发货三天了。"),
    ("assistant", "非常抱歉给您带来不便。请您提供一下订单号和收货人的姓名，我马上为您查询物流的进度。"),
    ("user", "订单号是尾号四五八二的那个，收货人姓李，电话就是我现在打的这个。"),
    ("assistant", "好的李先生，我这边看到您的洗衣机目前在本市的中转站，因为昨天的大雨，配送推迟了一天。"),
] * 4


def question(number: int) -> dict[str, Any]:
    """Make a chat with a history; no two are equal."""
    history = [{"role": role, "content": f"{words}（{number}）"} for role, words in HISTORY]
    messages = [*history, {"role": "user", "content": f"那大概什么时候能送到？我第{number}次问了。"}]
    return {"kind": "chat", "messages": messages, "sampling": {"max_tokens": 64}}


def bulk(number: int) -> dict[str, Any]:
    """Make a chat of 96 to 287 tokens: answers of equal length would all end, and begin, together."""
    return chat(number, 96 + number * 37 % 192)


class Answer(NamedTuple):
    """Milliseconds from submit to the first piece of text and to the end."""

    first: float
    whole: float


@dataclass
class Seen:
    """What the chats of a phase saw, and what the engine did for others in each second meanwhile."""

    answers: list[Answer]
    tokens_a_second: float
    rows_a_second: float
    within_50_ms: float

    def figures(self, name: str) -> dict[str, float]:
        """Return its figures."""
        return {
            f"{name} first_ms_p50": median(one.first for one in self.answers),
            f"{name} first_ms_p95": self.first_p95,
            f"{name} whole_ms_p50": median(one.whole for one in self.answers),
            f"{name} tokens_within_50_ms": self.within_50_ms,
        }

    @property
    def first_p95(self) -> float:
        """Milliseconds to the first token, of the slowest but one in twenty."""
        return percentile([one.first for one in self.answers], 0.95)


async def answer(client: AsyncClient, number: int) -> Answer:
    """Stream one chat to its end."""
    started, first = time.perf_counter(), None
    async for event in client.stream(question(number)):
        if first is None and isinstance(event, TextEvent):
            first = time.perf_counter() - started
    assert first is not None
    return Answer(first * 1000, (time.perf_counter() - started) * 1000)


async def chats(client: AsyncClient, engine: Engine, offset: int) -> Seen:
    """Submit two a second, whether the earlier ones are answered or not."""
    async with looking() as http:
        before, slow_before = await counted(http, [engine.url]), await _token_times(http, engine)
        started, submitted = time.perf_counter(), []
        for number in range(CHATS):
            submitted.append(asyncio.create_task(answer(client, offset + number)))
            await asyncio.sleep(1 / CHATS_A_SECOND)
        found = await asyncio.gather(*submitted)
        after, slow_after = await counted(http, [engine.url]), await _token_times(http, engine)
    seconds = time.perf_counter() - started
    quick, everything = (now - then for now, then in zip(slow_after, slow_before, strict=True))
    return Seen(
        list(found),
        (after.tokens - before.tokens) / seconds,
        (after.finished - before.finished) / seconds,
        quick / everything if everything else 1.0,
    )


async def _token_times(http: httpx.AsyncClient, engine: Engine) -> tuple[float, float]:
    """Return how many tokens came within 50 ms of the one before, and how many there were."""
    page = (await http.get(f"{engine.url}/metrics")).text
    found = [
        re.search(rf"^vllm:inter_token_latency_seconds_{name} ([0-9.e+]+)$", page, re.M)
        for name in (r'bucket\{engine="0",le="0.05",[^}]*\}', r"count\{[^}]*\}")
    ]
    quick, everything = (float(one[1]) if one else 0.0 for one in found)
    return quick, everything


async def beside(client: AsyncClient, engine: Engine, offset: int, burden: Awaitable[None]) -> Seen:
    """Measure chats beside bulk work."""
    work = asyncio.ensure_future(burden)
    await answer(client, offset - 1)
    await asyncio.sleep(WARM_SECONDS)
    found = await chats(client, engine, offset)
    assert not work.done(), "there was too little bulk work"
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await _until_idle(engine)
    return found


async def through_pipeline(client: AsyncClient, make: Callable[[int], dict[str, Any]], jobs: int) -> None:
    """Keep two batches of bulk in the pipeline until cancelled; then cancel what is left of them."""
    numbers, open_batches = count(), deque[Batch]()
    try:
        while True:
            while len(open_batches) < 2:
                open_batches.append(await client.submit_many([make(next(numbers)) for _ in range(jobs)]))
            async for _ in client.watch_batch(open_batches[0].batch_id):
                pass
            open_batches.popleft()
    finally:
        await asyncio.gather(*[client.cancel(job_id) for batch in open_batches for job_id in batch.job_ids])


async def measure(engine: Engine) -> dict[str, float]:
    """Measure chats alone, beside gated and beside ungated bulk of both kinds."""
    async with AsyncClient() as client:
        for number in range(5):
            await answer(client, -100 - number)
        idle = Idle()
        alone = await chats(client, engine, 0)
        found = alone.figures("alone")
        for kind, make, jobs in (("chats", bulk, BULK_CHATS), ("intents", intent, BULK_INTENTS)):
            gated = await beside(client, engine, 10_000, through_pipeline(client, make, jobs))
            many = [make(number) for number in range(1_000_000, 1_000_000 + 20 * jobs)]
            ungated = await beside(client, engine, 20_000, Direct(engine.url, 4 * MAX_NUM_SEQS).run(many))
            found |= gated.figures(f"beside {kind}") | ungated.figures(f"beside ungated {kind}")
            found[f"  first p95 ratio beside {kind}"] = gated.first_p95 / alone.first_p95
            found[f"  kept of {kind}"] = (
                gated.tokens_a_second / ungated.tokens_a_second
                if make is bulk
                else gated.rows_a_second / ungated.rows_a_second
            )
    return found | {"idle_share": idle.share()}


async def _until_idle(engine: Engine) -> None:
    async with looking() as http:
        while True:
            if not (await counted(http, [engine.url])).running:
                return
            await asyncio.sleep(0.2)


def main() -> None:
    """Run it and show the figures."""
    with (
        tempfile.TemporaryDirectory(prefix="yyc3-models-") as folder,
        engines(Path(folder), 1, speed=1.0) as (engine,),
        fast_pipeline(),
    ):
        numbers = asyncio.run(measure(engine))
    os.environ.pop("YYC3_MODELS_FILE")
    show("chat under bulk", numbers)


if __name__ == "__main__":
    main()
