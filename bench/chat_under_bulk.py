"""Measure how bulk work delays chats: time to the first token alone, beside our bulk lane, and beside ungated bulk.

A life-like simulator with 256 slots answers two chats a second, each with a history of a usual length, streamed to a
reader: first without other work; then beside the pipeline's own bulk lane, which leaves slots free and whose rows have a
lower priority; then beside an asyncio client that keeps four times 256 rows in flight without a priority. `bulk_kept`:
tokens a second of gated bulk over those of ungated bulk.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from statistics import median
from typing import Any

from bench.engines import MAX_NUM_SEQS, Direct, Engine, chat, counted, engines, looking
from bench.setting import Idle, fast_pipeline, percentile, show
from pipeline import AsyncClient
from schemas.streams import TextEvent

CHATS = 100
CHATS_A_SECOND = 2.0
WARM_SECONDS = 15.0
BULK_JOBS = 4_000
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


async def first_token(client: AsyncClient, number: int) -> float:
    """Return the milliseconds from submit to the first piece of text; reads on to the end."""
    started, first = time.perf_counter(), None
    async for event in client.stream(question(number)):
        if first is None and isinstance(event, TextEvent):
            first = time.perf_counter() - started
    assert first is not None
    return first * 1000


async def chats(client: AsyncClient, offset: int) -> list[float]:
    """Submit two a second, whether the earlier ones are answered or not."""
    submitted = []
    for number in range(CHATS):
        submitted.append(asyncio.create_task(first_token(client, offset + number)))
        await asyncio.sleep(1 / CHATS_A_SECOND)
    return await asyncio.gather(*submitted)


async def beside(
    client: AsyncClient, engine: Engine, offset: int, burden: Awaitable[None]
) -> tuple[list[float], float]:
    """Measure first tokens beside bulk work, and the engine's tokens a second meanwhile."""
    work = asyncio.ensure_future(burden)
    await first_token(client, offset - 1)
    await asyncio.sleep(WARM_SECONDS)
    async with looking() as http:
        before, started = await counted(http, [engine.url]), time.perf_counter()
        found = await chats(client, offset)
        after, seconds = await counted(http, [engine.url]), time.perf_counter() - started
    assert not work.done(), "there was too little bulk work"
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    return found, (after.tokens - before.tokens) / seconds


async def through_pipeline(client: AsyncClient, numbers: range) -> None:
    """Run bulk through the pipeline; cancels what is left."""
    batch = await client.submit_many([bulk(number) for number in numbers])
    try:
        async for _ in client.watch_batch(batch.batch_id):
            pass
    finally:
        await asyncio.gather(*[client.cancel(job_id) for job_id in batch.job_ids])


async def measure(engine: Engine) -> dict[str, float]:
    """Measure chats alone, beside gated and beside ungated bulk."""
    async with AsyncClient() as client:
        for number in range(5):
            await first_token(client, -100 - number)
        idle = Idle()
        alone = await chats(client, 0)
        gated, kept = await beside(client, engine, 10_000, through_pipeline(client, range(BULK_JOBS)))
        await _until_idle(engine)
        many = [bulk(number) for number in range(BULK_JOBS, 4 * BULK_JOBS)]
        ungated, free = await beside(client, engine, 20_000, Direct(engine.url, 4 * MAX_NUM_SEQS).run(many))
    p95 = percentile(alone, 0.95)
    return {
        "ttft_ms_p50_alone": median(alone),
        "ttft_ms_p95_alone": p95,
        "ttft_ms_p50_gated": median(gated),
        "ttft_ms_p95_gated": percentile(gated, 0.95),
        "ttft_ms_p50_ungated": median(ungated),
        "ttft_ms_p95_ungated": percentile(ungated, 0.95),
        "ttft_p95_ratio_gated": percentile(gated, 0.95) / p95,
        "ttft_p95_ratio_ungated": percentile(ungated, 0.95) / p95,
        "bulk_tokens_per_second_gated": kept,
        "bulk_tokens_per_second_ungated": free,
        "bulk_kept": kept / free,
        "idle_share": idle.share(),
    }


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
