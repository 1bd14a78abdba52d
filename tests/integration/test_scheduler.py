"""The scheduler of one process, with simulators in the same loop: which rows end, are counted, and go first."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any, cast
from uuid import uuid4

import httpx
import orjson
import pytest

from pipeline import kinds
from pipeline.engine import EngineClient, EnginePool
from pipeline.engine.metrics import EngineMetrics, poll_metrics
from pipeline.kinds.cache_key import cache_key
from pipeline.models import LabelForm, ModelEntry
from pipeline.store.claims import Claim, ClaimedJob
from pipeline.streams import StreamWriter
from schemas.doorbells import Lane
from schemas.ids import JobId
from schemas.jobs import parse_job
from simulator import SimulatorOptions, serve
from workers.execution.run import Row, Run
from workers.execution.scheduler import Scheduler

_numbers = iter(range(1, 1_000_000))


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition, checked in every turn of the loop."""
    async with asyncio.timeout(seconds):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


def run_of(*jobs: dict[str, Any], priority: int = 0) -> Run:
    claimed = tuple(
        ClaimedJob(
            JobId(next(_numbers)), 0, "default", str(job["kind"]), orjson.dumps(job), 0.0, None, failed_attempts=0
        )
        for job in jobs
    )
    lane = Lane.BULK
    return Run(Claim(uuid4(), claimed[0].job_id, 1, len(jobs), "m", lane, None, priority, 0, None, claimed))


def chat(words: str, *, temperature: float | None = None, **more: Any) -> dict[str, Any]:
    sampling = {"max_tokens": 8, **({} if temperature is None else {"temperature": temperature})}
    return {"kind": "chat", "messages": [{"role": "user", "content": words}], "sampling": sampling, **more}


class Fixture:
    """A scheduler, its pool and its engines."""

    def __init__(self, pool: EnginePool, urls: list[str]) -> None:
        self.pool = pool
        self.urls = urls
        self.scheduler = Scheduler(pool, cast(StreamWriter, None))
        self.http = httpx.AsyncClient(trust_env=False)

    async def script(self, engine: int, *lines: dict[str, Any]) -> None:
        """Replace the scripted answers of an engine."""
        answers = {"answers": lines}
        (await self.http.put(f"{self.urls[engine]}/simulator/answers", json=answers)).raise_for_status()

    async def rows_seen(self, engine: int = 0) -> int:
        rows: int = (await self.http.get(f"{self.urls[engine]}/simulator/state")).json()["rows"]
        return rows

    async def send(self, run: Run) -> None:
        capabilities = await self.pool.capabilities()
        rows = []
        for claimed in run.claim.jobs:
            job = parse_job(claimed.request)
            profile = kinds.EndpointProfile(LabelForm.CODE, capabilities.constraint, 8_192)
            request = kinds.build(job, profile)
            key, revision = None, self.pool.revision_of(capabilities)
            if job.cache and request.deterministic:
                key = cache_key(job.tenant, "m", revision, capabilities.simulated, request)
            rows.append(Row(run, claimed, job, request, profile, key, capabilities, revision))
        await self.scheduler.send(run, rows)

    def fill(self, engine: int = 0) -> None:
        """Leave an endpoint no capacity, as rows of another scheduler would."""
        endpoint = self.pool.endpoints[engine]
        endpoint.in_flight = endpoint.limit.rows

    def release(self, engine: int = 0) -> None:
        """Undo `fill`."""
        self.pool.endpoints[engine].in_flight = 0
        self.pool.notify_changed()

    @property
    def in_flight(self) -> tuple[int, int]:
        return sum(one.in_flight for one in self.pool.endpoints), sum(one.tokens for one in self.pool.endpoints)


Make = Callable[..., Awaitable[Fixture]]


@pytest.fixture
async def make_scheduler() -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        async def make(engines: int = 1, *, max_num_seqs: int = 8, speed: float = 200.0) -> Fixture:
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
            made = Fixture(EnginePool(entry, client, gives_way=True), urls)
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


async def test_a_cancel_just_after_sending_ends_the_round_and_frees_capacity(make_scheduler: Make) -> None:
    b = await make_scheduler()
    run = run_of(chat("a"))
    sending = asyncio.create_task(b.send(run))
    await until(lambda: b.in_flight[0] > 0)
    run.cancel([run.claim.jobs[0].job_id])
    async with asyncio.timeout(30):
        await sending
    await asyncio.sleep(0)
    assert b.in_flight == (0, 0)


async def test_random_cancels_and_lost_runs_leak_nothing_and_block_no_row(make_scheduler: Make) -> None:
    b = await make_scheduler(2, max_num_seqs=16)
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
    async with asyncio.timeout(30):
        await asyncio.gather(*sending, return_exceptions=True)
    for run in runs:
        assert run.lost or not run.unsettled, run.unsettled
    # Rows of lost runs leave the queue when their turn comes.
    await until(lambda: not b.scheduler.waiting and b.in_flight == (0, 0))


async def test_a_row_that_waits_for_one_endpoint_blocks_no_other_row(make_scheduler: Make) -> None:
    b = await make_scheduler(2, max_num_seqs=4)
    one, other = b.pool.endpoints
    await b.script(0, {"when": "bad", "fault": "500", "times": 1})
    b.fill(1)
    run = run_of(chat("bad"), *[chat(f"good {i}") for i in range(30)])
    sending = asyncio.create_task(b.send(run))
    await until(lambda: run.done_rows == 30)
    assert not sending.done()
    b.release(1)
    async with asyncio.timeout(30):
        await sending
    assert (run.failed, run.done_rows) == (0, 31)
    assert one.in_flight == other.in_flight == 0


async def test_followers_of_a_failed_leader_are_sent_together(make_scheduler: Make) -> None:
    b = await make_scheduler(max_num_seqs=64)
    slow = {"when": "same", "fault": "slow", "seconds": 1}
    await b.script(0, {"when": "same", "fault": "400", "times": 1}, slow)
    run = run_of(*[chat("same", temperature=0.0) for _ in range(30)])
    sending = asyncio.create_task(b.send(run))
    await until(lambda: b.in_flight[0] == 29)
    async with asyncio.timeout(30):
        await sending
    assert (run.failed, run.done_rows) == (1, 30)


async def test_a_row_of_higher_priority_does_not_follow_a_queued_equal_row(make_scheduler: Make) -> None:
    b = await make_scheduler(max_num_seqs=1)
    b.fill()
    order: list[str] = []

    async def send(name: str, run: Run) -> None:
        await b.send(run)
        order.append(name)

    runs = [run_of(chat(f"q{i}", temperature=0.0), priority=9) for i in range(3)]
    sending = [asyncio.create_task(send(f"bulk {i}", run)) for i, run in enumerate(runs)]
    await until(lambda: b.scheduler.waiting == 3)
    sending.append(asyncio.create_task(send("urgent", run_of(chat("q2", temperature=0.0)))))
    await until(lambda: b.scheduler.waiting == 4)
    b.release()
    async with asyncio.timeout(30):
        await asyncio.gather(*sending)
    assert order[0] == "urgent"


async def test_the_answer_of_a_cancelled_row_goes_to_its_follower(make_scheduler: Make) -> None:
    b = await make_scheduler()
    await b.script(0, {"when": "", "fault": "slow", "seconds": 0.5})
    before = await b.rows_seen()
    first, second = run_of(chat("t", temperature=0.0)), run_of(chat("t", temperature=0.0))
    sending = [asyncio.create_task(b.send(run)) for run in (first, second)]
    await until(lambda: b.in_flight[0] == 1 and any(row.followers for row in first.rows.values()))
    first.cancel([first.claim.jobs[0].job_id])
    async with asyncio.timeout(30):
        await asyncio.gather(*sending)
    (settled,) = second.unwritten
    assert settled.cached_from is None
    assert settled.cache_key is not None
    assert first.unwritten == []
    assert await b.rows_seen() == before + 1


async def test_a_cancelled_row_in_the_queue_ends_its_run_at_once(make_scheduler: Make) -> None:
    b = await make_scheduler(max_num_seqs=1)
    b.fill()
    run = run_of(chat("y"))
    sending = asyncio.create_task(b.send(run))
    await until(lambda: b.scheduler.waiting == 1)
    run.cancel([run.claim.jobs[0].job_id])
    async with asyncio.timeout(30):
        await sending
    assert await b.rows_seen() == 0


async def test_an_endpoint_is_probed_again_after_a_pause(make_scheduler: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    b = await make_scheduler()
    (endpoint,) = b.pool.endpoints
    probed_at = endpoint.probed_at
    assert (await b.pool.capabilities()) is endpoint.capabilities
    assert endpoint.probed_at == probed_at
    monkeypatch.setattr("pipeline.engine.pool._PROBE_VALID_SECONDS", 0.0)
    await b.pool.capabilities()
    assert endpoint.probed_at > probed_at


async def test_gauges_are_polled_once_a_second_while_another_endpoint_hangs(
    make_scheduler: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = await make_scheduler(2, speed=1.0)
    one, other = b.pool.endpoints
    hang = {"faults": [{"kind": "hang"}]}
    (await b.http.put(f"{b.urls[1]}/simulator/faults", json=hang)).raise_for_status()
    polled: list[float] = []

    async def counted(client: EngineClient, endpoint: str, model: str) -> EngineMetrics | None:
        polled.append(time.monotonic())
        return await poll_metrics(client, endpoint, model)

    monkeypatch.setattr("pipeline.engine.pool.poll_metrics", counted)
    watching = asyncio.create_task(b.pool.watch())
    try:
        other.breaker.failed(time.monotonic(), unreachable=True)
        one.used_at = time.monotonic() + 60  # in use for the whole test
        await until(lambda: len(polled) == 4)
        assert min(later - earlier for earlier, later in pairwise(polled)) > 0.8
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
