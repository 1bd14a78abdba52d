"""Rows, lines and endpoints in one process, with simulators in the same loop: what ends, what is counted, who is first."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import httpx
import orjson
import pytest

from pipeline import kinds
from pipeline.engine import EngineClient, EnginePool
from pipeline.engine import pool as pool_module
from pipeline.kinds.cache_key import cache_key
from pipeline.models import LabelForm, ModelEntry
from pipeline.store.claims import Claim, ClaimedJob
from pipeline.streams.writer import StreamWriter
from schemas.doorbells import Lane
from schemas.ids import JobId
from schemas.jobs import parse_job
from simulator import SimulatorOptions, serve
from workers.execution.run import Row, Run
from workers.execution.scheduler import Scheduler

_numbers = iter(range(1, 1_000_000))


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Looks in every turn of the loop."""
    async with asyncio.timeout(seconds):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


def run_of(*jobs: dict[str, Any], priority: int = 0) -> Run:
    claimed = tuple(
        ClaimedJob(JobId(next(_numbers)), 1, orjson.dumps(job).decode(), 0.0, None, failed_attempts=0) for job in jobs
    )
    lane = Lane.BULK
    return Run(Claim(uuid4(), claimed[0].job_id, 1, len(jobs), "m", lane, None, priority, 0, None, claimed))


def chat(words: str, *, temperature: float | None = None, **more: Any) -> dict[str, Any]:
    sampling = {"max_tokens": 8, **({} if temperature is None else {"temperature": temperature})}
    return {"kind": "chat", "messages": [{"role": "user", "content": words}], "sampling": sampling, **more}


class Bench:
    """A scheduler, its pool, and its engines."""

    def __init__(self, pool: EnginePool, urls: list[str]) -> None:
        self.pool = pool
        self.urls = urls
        self.scheduler = Scheduler(pool, cast(StreamWriter, None))
        self.http = httpx.AsyncClient(trust_env=False)

    async def teach(self, engine: int, **line: Any) -> None:
        answers = {"answers": [line]}
        (await self.http.put(f"{self.urls[engine]}/simulator/answers", json=answers)).raise_for_status()

    async def rows_seen(self, engine: int = 0) -> int:
        rows: int = (await self.http.get(f"{self.urls[engine]}/simulator/state")).json()["rows"]
        return rows

    async def send(self, run: Run) -> None:
        facts = await self.pool.capabilities()
        rows = []
        for claimed in run.claim.jobs:
            job = parse_job(claimed.request)
            target = kinds.EndpointProfile(LabelForm.CODE, facts.constraint, 8_192)
            ask = kinds.build(job, target)
            key = None
            if job.cache and ask.deterministic:
                key = cache_key(job.tenant, "m", facts.revision, facts.simulated, ask)
            rows.append(Row(run, claimed, job, ask, target, key, facts))
        await self.scheduler.send(run, rows)

    @property
    def in_flight(self) -> tuple[int, int]:
        return sum(one.in_flight for one in self.pool.endpoints), sum(one.tokens for one in self.pool.endpoints)


Make = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def bench() -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        async def make(engines: int = 1, *, max_num_seqs: int = 8, speed: float = 200.0) -> Bench:
            urls = [await stack.enter_async_context(_engine(speed)) for _ in range(engines)]
            entry = ModelEntry(
                name="m",
                kinds=("chat",),
                port=1,
                endpoints=tuple(urls),
                max_num_seqs=max_num_seqs,
                label_form=LabelForm.CODE,
            )
            client = EngineClient(timedelta(seconds=20))
            made = Bench(EnginePool(entry, client, 0.125), urls)
            stack.push_async_callback(client.close)
            stack.push_async_callback(made.http.aclose)
            await made.pool.capabilities()
            return made

        yield make


@asynccontextmanager
async def _engine(speed: float) -> AsyncIterator[str]:
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(SimulatorOptions("m", port=0, speed=speed), listening.set_result))
    try:
        yield await listening
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_cancel_in_the_turn_of_the_request_ends_the_round_and_frees_the_seat(bench: Make) -> None:
    b = await bench()
    run = run_of(chat("a"))
    sending = asyncio.create_task(b.send(run))
    await until(lambda: b.in_flight[0] > 0)
    run.cancel([run.claim.jobs[0].job_id])
    async with asyncio.timeout(5):
        await sending
    await asyncio.sleep(0)
    assert b.in_flight == (0, 0)


async def test_random_cancels_and_lost_runs_leak_nothing_and_hold_nobody(bench: Make) -> None:
    b = await bench(2, max_num_seqs=16)
    choose = random.Random(3)
    runs = [run_of(*[chat(f"{n}-{i}", temperature=0.0 if i % 3 else None) for i in range(20)]) for n in range(30)]
    runs += [run_of(*[chat(f"same {i % 4}", temperature=0.0) for i in range(20)]) for n in range(5)]
    sending = [asyncio.create_task(b.send(run)) for run in runs]
    for _ in range(300):
        number = choose.randrange(len(runs))
        if choose.random() < 0.05:
            runs[number].lost = True
            sending[number].cancel()
        else:
            runs[number].cancel([choose.choice(runs[number].claim.jobs).job_id])
        await asyncio.sleep(choose.choice((0, 0, 0.001)))
    async with asyncio.timeout(20):
        await asyncio.gather(*sending, return_exceptions=True)
    for run in runs:
        assert run.lost or not run.unsettled, run.unsettled
    # Rows of lost runs, which nobody waits for, leave when their turn comes.
    await until(lambda: not b.scheduler.waiting and b.in_flight == (0, 0))


async def test_a_row_that_must_wait_for_the_other_endpoint_keeps_nobody_from_this_one(bench: Make) -> None:
    b = await bench(2, max_num_seqs=4)
    one, other = b.pool.endpoints
    await b.teach(0, when="bad", fault="500", times=1)
    other.in_flight = 4  # full of rows that take their time
    run = run_of(chat("bad"), *[chat(f"good {i}") for i in range(30)])
    sending = asyncio.create_task(b.send(run))
    await until(lambda: run.succeeded == 30)
    assert not sending.done()
    other.in_flight = 0
    b.pool.notify_changed()
    async with asyncio.timeout(5):
        await sending
    assert run.succeeded == 31
    assert one.in_flight == other.in_flight == 0


async def test_equal_questions_whose_first_fails_are_asked_at_once_and_not_one_by_one(bench: Make) -> None:
    b = await bench(max_num_seqs=64)
    await b.teach(0, when="same", fault="slow", seconds=0.3)
    await b.teach(0, when="same", fault="400", times=1)
    run = run_of(*[chat("same", temperature=0.0) for _ in range(30)])
    started = time.monotonic()
    await b.send(run)
    assert (run.failed, run.succeeded) == (1, 29)
    assert time.monotonic() - started < 3


async def test_an_urgent_row_does_not_wait_behind_an_equal_one_that_does(bench: Make) -> None:
    b = await bench(max_num_seqs=1)
    await b.teach(0, when="", fault="slow", seconds=0.2)
    order: list[str] = []

    async def go(name: str, run: Run) -> None:
        await b.send(run)
        order.append(name)

    first = asyncio.create_task(go("first", run_of(chat("x"))))
    await asyncio.sleep(0.05)
    later = [asyncio.create_task(go(f"bulk {i}", run_of(chat(f"q{i}", temperature=0.0), priority=9))) for i in range(3)]
    await asyncio.sleep(0.05)
    urgent = asyncio.create_task(go("urgent", run_of(chat("q2", temperature=0.0))))
    await asyncio.gather(first, *later, urgent)
    assert order[:2] == ["first", "urgent"]


async def test_a_cancelled_question_is_answered_for_who_asked_the_same(bench: Make) -> None:
    b = await bench()
    await b.teach(0, when="", fault="slow", seconds=0.5)
    before = await b.rows_seen()
    first, second = run_of(chat("t", temperature=0.0)), run_of(chat("t", temperature=0.0))
    sending = [asyncio.create_task(b.send(run)) for run in (first, second)]
    await asyncio.sleep(0.2)
    first.cancel([first.claim.jobs[0].job_id])
    await asyncio.gather(*sending)
    (settled,) = second.ready
    assert settled.cached_from is None
    assert settled.cache_key is not None
    assert first.ready == []
    assert await b.rows_seen() == before + 1


async def test_a_cancelled_row_in_line_ends_its_run_at_once(bench: Make) -> None:
    b = await bench(max_num_seqs=1)
    await b.teach(0, when="", fault="slow", seconds=1)
    busy = asyncio.create_task(b.send(run_of(chat("x"))))
    await asyncio.sleep(0.05)
    run = run_of(chat("y"))
    sending = asyncio.create_task(b.send(run))
    await asyncio.sleep(0.05)
    run.cancel([run.claim.jobs[0].job_id])
    async with asyncio.timeout(0.3):
        await sending
    await busy


async def test_after_a_pause_an_engine_is_asked_again_who_it_is(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    b = await bench()
    (endpoint,) = b.pool.endpoints
    asked = endpoint.probed_at
    assert (await b.pool.capabilities()) is endpoint.capabilities
    assert endpoint.probed_at == asked
    monkeypatch.setattr(pool_module, "_PROBE_VALID_SECONDS", 0.0)
    await b.pool.capabilities()
    assert endpoint.probed_at > asked


async def test_while_one_endpoint_hangs_the_others_gauges_are_read_once_a_second(bench: Make) -> None:
    b = await bench(2, speed=1.0)
    one, other = b.pool.endpoints
    hang = {"faults": [{"kind": "hang"}]}
    (await b.http.put(f"{b.urls[1]}/simulator/faults", json=hang)).raise_for_status()
    looks = 0
    poll_metrics = pool_module.poll_metrics

    async def counted(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return await poll_metrics(*arguments)

    pool_module.poll_metrics = counted
    watching = asyncio.create_task(b.pool.watch())
    try:
        other.breaker.failed(time.monotonic(), unreachable=True)
        one.used_at = time.monotonic()
        await asyncio.sleep(2.5)
        assert 2 <= looks <= 4
    finally:
        pool_module.poll_metrics = poll_metrics
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
