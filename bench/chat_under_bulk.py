"""Measure how bulk work delays chats: alone, beside our bulk lane, and beside ungated bulk, of chats and of classification.

A life-like simulator with 256 slots answers one chat a second, each with a history of a usual length that it has not read
before, streamed to a reader: first without other work; then beside the pipeline's own bulk lane; then beside an asyncio
client that keeps four times 256 rows in flight without a priority. Bulk is chats, whose slots matter, then intents, whose
prompts stretch every step of the engine. Each phase has a pipeline and an engine of its own.

Figures are the first token, the whole answer of 64 tokens, the time between two tokens as the engine's own histogram has it
(its 95th percentile, linear within a bucket, and the share within 50 ms), and `kept`: rows or tokens a second of gated bulk
over those of ungated. Last comes the curve: the same beside intents for other values of `inter_token_latency_ms`.
"""

import asyncio
import os
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable
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

CHATS, CHATS_OF_THE_CURVE = 60, 40
CHATS_A_SECOND = 1.0
WARM_SECONDS = 20.0
BULK_CHATS, BULK_INTENTS = 1_000, 4_000  # in a batch, of which two are in the pipeline
FIRST_NUMBER = 1_000_000  # of equal length, so that prompts are
CURVE_MS = (25, 50, 100, 200)
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
    between_tokens: list[tuple[float, float]]  # upper ends of buckets in seconds, and the tokens up to there

    def figures(self, name: str) -> dict[str, float]:
        """Return its figures."""
        return {
            f"{name} first_ms_p50": median(one.first for one in self.answers),
            f"{name} first_ms_p95": self.first_p95,
            f"{name} whole_ms_p50": median(one.whole for one in self.answers),
            f"{name} between_tokens_ms_p95": self.token_p95,
            f"{name} tokens_within_50_ms": next(n for end, n in self.between_tokens if end >= 0.05) / self._tokens,
        }

    @property
    def first_p95(self) -> float:
        """Milliseconds to the first token, of the slowest but one in twenty."""
        return percentile([one.first for one in self.answers], 0.95)

    @property
    def token_p95(self) -> float:
        """Milliseconds between two tokens, of the slowest but one in twenty."""
        wanted, start, below = 0.95 * self._tokens, 0.0, 0.0
        for end, up_to in self.between_tokens:
            if up_to >= wanted:
                return (start + (end - start) * (wanted - below) / (up_to - below)) * 1000
            start, below = end, up_to
        return float("inf")

    @property
    def _tokens(self) -> float:
        return max(1.0, self.between_tokens[-1][1])


async def answer(client: AsyncClient, number: int) -> Answer:
    """Stream one chat to its end."""
    started, first = time.perf_counter(), None
    async for event in client.stream(question(number)):
        if first is None and isinstance(event, TextEvent):
            first = time.perf_counter() - started
    assert first is not None
    return Answer(first * 1000, (time.perf_counter() - started) * 1000)


async def chats(client: AsyncClient, engine: Engine, number_of_chats: int) -> Seen:
    """Submit one a second, whether the earlier ones are answered or not."""
    async with looking() as http:
        before, tokens_before = await counted(http, [engine.url]), await _between_tokens(http, engine)
        started, submitted = time.perf_counter(), []
        for number in range(number_of_chats):
            submitted.append(asyncio.create_task(answer(client, FIRST_NUMBER + number)))
            await asyncio.sleep(1 / CHATS_A_SECOND)
        found = await asyncio.gather(*submitted)
        after, tokens_after = await counted(http, [engine.url]), await _between_tokens(http, engine)
    seconds = time.perf_counter() - started
    earlier = dict(tokens_before)
    return Seen(
        list(found),
        (after.tokens - before.tokens) / seconds,
        (after.finished - before.finished) / seconds,
        [(end, up_to - earlier.get(end, 0.0)) for end, up_to in tokens_after],
    )


async def _between_tokens(http: httpx.AsyncClient, engine: Engine) -> list[tuple[float, float]]:
    """Return how many tokens came within each time of the one before, as the engine counts them."""
    page = (await http.get(f"{engine.url}/metrics")).text
    buckets = re.findall(r'^vllm:inter_token_latency_seconds_bucket\{engine="0",le="([^"]+)"[^}]*\} (\S+)$', page, re.M)
    return sorted((float(end), float(up_to)) for end, up_to in buckets)


Burden = Callable[[AsyncClient, Engine], Any]


async def _phase(engine: Engine, burden: Burden | None, number_of_chats: int) -> Seen:
    async with AsyncClient() as client:
        for number in range(3):
            await answer(client, FIRST_NUMBER - 1 - number)
        if burden is None:
            return await chats(client, engine, number_of_chats)
        work = asyncio.ensure_future(burden(client, engine))
        started = time.perf_counter()
        number = 0
        while time.perf_counter() - started < WARM_SECONDS:  # chats too, so that bulk gives way already
            number += 1
            await asyncio.gather(answer(client, FIRST_NUMBER - 100 - number), asyncio.sleep(1 / CHATS_A_SECOND))
        found = await chats(client, engine, number_of_chats)
        assert not work.done(), "there was too little bulk work"
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return found


def measured(burden: Burden | None, *, between_ms: int = 50, number_of_chats: int = CHATS) -> Seen:
    """Measure chats beside a burden, with an engine and a pipeline that nothing else used."""
    with tempfile.TemporaryDirectory(prefix="yyc3-models-") as folder:
        with engines(Path(folder), 1, speed=1.0) as (engine,):
            file = Path(folder) / "models.toml"
            file.write_text(file.read_text() + f"inter_token_latency_ms = {between_ms}\n")
            with fast_pipeline():
                found = asyncio.run(_phase(engine, burden, number_of_chats))
        os.environ.pop("YYC3_MODELS_FILE")
    return found


def gated(make: Callable[[int], dict[str, Any]], jobs: int) -> Burden:
    """Return a burden through the pipeline: two batches are always in it."""

    async def run(client: AsyncClient, engine: Engine) -> None:
        del engine
        numbers, open_batches = count(FIRST_NUMBER), deque[Batch]()
        while True:
            while len(open_batches) < 2:
                open_batches.append(await client.submit_many([make(next(numbers)) for _ in range(jobs)]))
            async for _ in client.watch_batch(open_batches[0].batch_id):
                pass
            open_batches.popleft()

    return run


def ungated(make: Callable[[int], dict[str, Any]], jobs: int) -> Burden:
    """Return a burden past the pipeline."""

    async def run(_: AsyncClient, engine: Engine) -> None:
        many = [make(number) for number in range(2 * FIRST_NUMBER, 2 * FIRST_NUMBER + 20 * jobs)]
        await Direct(engine.url, 4 * MAX_NUM_SEQS).run(many)

    return run


def measure() -> dict[str, float]:
    """Measure chats alone, beside gated and beside ungated bulk of both kinds, and the curve."""
    idle = Idle()
    alone = measured(None)
    found = alone.figures("alone")
    for kind, make, jobs in (("chats", bulk, BULK_CHATS), ("intents", intent, BULK_INTENTS)):
        without, beside = measured(ungated(make, jobs)), measured(gated(make, jobs))
        found |= beside.figures(f"beside {kind}") | without.figures(f"beside ungated {kind}")
        found[f"  first p95 ratio beside {kind}"] = beside.first_p95 / alone.first_p95
        found[f"  kept of {kind}"] = (
            beside.tokens_a_second / without.tokens_a_second
            if make is bulk
            else beside.rows_a_second / without.rows_a_second
        )
        if make is intent:
            for between_ms in CURVE_MS:
                point = measured(gated(make, jobs), between_ms=between_ms, number_of_chats=CHATS_OF_THE_CURVE)
                found[f"    curve {between_ms} ms: between_tokens_ms_p95"] = point.token_p95
                found[f"    curve {between_ms} ms: first_ms_p95"] = point.first_p95
                found[f"    curve {between_ms} ms: kept"] = point.rows_a_second / without.rows_a_second
    return found | {"idle_share": idle.share()}


def main() -> None:
    """Run it and show the figures."""
    show("chat under bulk", measure())


if __name__ == "__main__":
    main()
