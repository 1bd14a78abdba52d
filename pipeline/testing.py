"""A running pipeline for a caller's own test suite: real Postgres, real Redis, real workers, simulated engines.

    pytest_plugins = ["pipeline.testing"]           # in conftest.py


    def test_refunds_are_found(yyc3):
        yyc3.answer("箱子压扁了", "refund")
        with yyc3.client() as client:
            job_id = client.submit({"kind": "chat", "messages": [{"role": "user", "content": "箱子压扁了"}]})
            assert client.result(job_id, timeout=10).result.text == "refund"

It is started once a session; what a test taught the engines is forgotten after it. Nothing else on the machine is touched:
data lies in a temporary folder, every port is a free one.
"""

import asyncio
import os
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import httpx
import pytest

from pipeline.client import AsyncClient, Client
from pipeline.local.addresses import Running, write_running
from pipeline.local.client import Home
from pipeline.operations.recovery import Reach, Recovery
from pipeline.settings import load_settings
from pipeline.store import Database, answer_cache, claims, settlement, submission
from pipeline.store.ids import JobIds
from pipeline.store.schema import migrate
from pipeline.store.settlement import NextState, RunReport, SettledRow
from pipeline.store.submission import NewJob, Stored
from pipeline.wiring import Adapters, Wiring
from schemas.doorbells import Lane
from schemas.errors import ErrorCode, InvalidSetting
from schemas.ids import JobId
from schemas.jobs import Job, canonical, parse_job
from schemas.results import JobState
from simulator import SimulatorOptions, serve

_READY_SECONDS = 30.0
_ELSEWHERE = ("DATABASE_URL", "REDIS_URL", "BROKER_URL", "AI_BASE_URL", "AI_MODEL", "YYC3_MODELS_FILE")
# A worker that a test kills is missed soon, and an engine that hangs is given up soon.
_LEASE = timedelta(seconds=2)
_IMPATIENT = {"YYC3_LEASE_SECONDS": f"{_LEASE.total_seconds():g}", "AI_TIMEOUT_MS": "3000"}
_STATES = {ErrorCode.CANCELLED: JobState.CANCELLED, ErrorCode.DEADLINE_PASSED: JobState.EXPIRED}
T = TypeVar("T")


class PipelineUnderTest:
    """A running pipeline; without pytest use it as `with PipelineUnderTest() as yyc3`.

    Args:
        speed: of the simulated engines; 1 is life-like.
    """

    def __init__(self, *, speed: float = 100.0) -> None:
        self._speed = speed
        self._folder = tempfile.TemporaryDirectory(prefix="yyc3-test-")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="yyc3-test", daemon=True)
        self._http = httpx.Client(timeout=10, trust_env=False)
        self._engines: dict[str, str] = {}
        self._answers: dict[str, list[dict[str, Any]]] = {}
        self._starts: dict[str, int] = {}
        self._kept: list[asyncio.Task[None]] = []
        self.home = Path(self._folder.name)
        self.environment = {
            key: value for key, value in os.environ.items() if key not in _ELSEWHERE and not key.startswith("YYC3_")
        } | {"YYC3_HOME": str(self.home)}
        """For processes that are to find this pipeline, such as `yyc3` commands."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._servers = Home(self.home, ["postgres", "valkey"])
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._run(self._cancel_all())
        self._servers.close()
        self._http.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._folder.cleanup()

    def _start(self) -> None:
        self.database_url, self.redis_url = self._servers.urls["postgres"], self._servers.urls["valkey"]
        nothing = dict.fromkeys(_ELSEWHERE)
        models = Wiring(load_settings(home=self.home, **nothing)).models
        for entry in models:
            options = SimulatorOptions(
                entry.name, port=0, speed=self._speed, max_num_seqs=entry.seats, max_model_len=entry.context_tokens
            )
            self._engines[entry.name] = self._run(self._engine(options))
        running = Running(database_url=self.database_url, redis_url=self.redis_url, simulated=self._engines)
        write_running(self.home, running)
        self._wiring = Wiring(load_settings(home=self.home))
        for lane in Lane:
            self._start_process(f"worker-{lane}", "workers.main", lane)
        migrate.upgrade(self.database_url)
        self._run(self._keep(self._recover()))
        for lane in Lane:
            self._until_ready(f"worker-{lane}")

    def client(self) -> Client:
        """A client of this pipeline, for a with statement."""
        return Client(database_url=self.database_url, redis_url=self.redis_url)

    def async_client(self) -> AsyncClient:
        """The same for asyncio."""
        return AsyncClient(database_url=self.database_url, redis_url=self.redis_url)

    def start_intake(self) -> None:
        """Run the intake queue too, for callers that speak Celery; does nothing where it runs."""
        if "intake" not in self._starts:
            self._start_process("intake", "workers.intake")
            self._until_ready("intake")

    def answer(
        self, when: str, text: str, *, model: str | None = None, times: int | None = None, cut_off: bool = False
    ) -> None:
        """Let the engines answer `text` to whatever has `when` in its last user message.

        What was said last comes first. Labels are answered in the word or letter that the prompt asks for.

        Args:
            when: a part of the message; an empty text is part of every one.
            text: the answer; a constraint of the request does not hold for it.
            model: only this model; all of them if left out.
            times: so often; for ever if left out.
            cut_off: as if `max_tokens` had cut it.
        """
        self._teach(
            {"when": when, "answer": text, "finish_reason": "length" if cut_off else None, "times": times}, model
        )

    def fail(
        self, when: str, fault: str, *, model: str | None = None, times: int | None = None, seconds: float | None = None
    ) -> None:
        """Let the engines fail on whatever has `when` in its last user message.

        Args:
            when: a part of the message; an empty text is part of every one.
            fault: an HTTP status such as `503`, or a kind of docs/simulator.md: slow, hang, cut, garbage, abort, empty, crash.
            model: only this model; all of them if left out.
            times: so often; for ever if left out.
            seconds: how long, for slow and hang.
        """
        self._teach({"when": when, "fault": fault, "times": times, "seconds": seconds}, model)

    def dead_letter(self, job: Job | dict[str, Any], code: ErrorCode) -> JobId:
        """A job that has ended with this code, written as a worker writes it; no engine was asked.

        For codes that take long or a mistake of ours to come up by themselves.
        """
        return self._run(self._dead_letter(parse_job(job), code))

    def kill_worker(self, lane: Lane) -> None:
        """Kill -9, and another one in its place; what it held is taken up by others within a few seconds."""
        name = f"worker-{lane}"
        self._servers.kill(name)
        self._start_process(name, "workers.main", lane)
        self._until_ready(name)

    def forget(self) -> None:
        """Forget everything the engines were taught, and every answer they gave."""
        self._answers.clear()
        self._run(self._forget_answers())
        for url in self._engines.values():
            self._http.delete(f"{url}/simulator/answers").raise_for_status()

    def _teach(self, line: dict[str, Any], model: str | None) -> None:
        if model is not None and model not in self._engines:
            raise InvalidSetting(f"model: {model!r} is not simulated here; known are {', '.join(self._engines)}")
        given = {key: value for key, value in line.items() if value is not None}
        self._run(self._forget_answers())  # what was answered before is no answer now
        for name, url in self._engines.items():
            if model in {None, name}:
                lines = self._answers.setdefault(name, [])
                lines.insert(0, given)
                response = self._http.put(f"{url}/simulator/answers", json={"answers": lines})
                if response.status_code != 200:
                    lines.pop(0)
                    raise InvalidSetting(response.json()["error"]["message"])

    def _start_process(self, name: str, module: str, *arguments: str) -> None:
        self._starts[name] = self._starts.get(name, 0) + 1
        environment = dict.fromkeys(_ELSEWHERE, "") | _IMPATIENT | {"YYC3_HOME": str(self.home)}
        argv = [sys.executable, "-m", module, *arguments]
        self._servers.start(name, argv, environment=environment, log=self.home / f"{name}.log")

    def _until_ready(self, name: str) -> None:
        log, end = self.home / f"{name}.log", time.monotonic() + _READY_SECONDS
        while not log.exists() or log.read_text(errors="replace").count('"event": "ready"') < self._starts[name]:
            if time.monotonic() > end:
                raise InvalidSetting(f"{name} did not start within {_READY_SECONDS:.0f} s; it says: {log.read_text()}")
            time.sleep(0.01)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        self._kept.append(asyncio.create_task(work))

    async def _cancel_all(self) -> None:
        for task in self._kept:
            task.cancel()
        await asyncio.gather(*self._kept, return_exceptions=True)

    async def _engine(self, options: SimulatorOptions) -> str:
        listening: asyncio.Future[str] = self._loop.create_future()
        await self._keep(serve(options, listening.set_result))
        return await listening

    async def _recover(self) -> None:
        async with self._wiring.adapters() as adapters:
            reach = Reach(adapters.database, adapters.bells, adapters.whispers, adapters.stream_writer)
            await Recovery(reach, adapters.models, _LEASE).sweep_forever()

    async def _forget_answers(self) -> None:
        database = await Database(self.database_url).open()
        try:
            await answer_cache.forget_all(database)
        finally:
            await database.close()

    async def _dead_letter(self, job: Job, code: ErrorCode) -> JobId:
        async with self._wiring.adapters() as adapters:
            while True:
                job_id = await _stored_unrung(adapters, job)
                taken = await claims.claim_named(
                    adapters.database, [(job_id, uuid4())], worker="test", lease=timedelta(seconds=30)
                )
                if not taken:
                    continue  # recovery rang for it, and a worker was first
                (claim,) = taken.values()
                row = SettledRow(
                    job_id, 1, _STATES.get(code, JobState.FAILED), code=code, message=f"written for a test: {code}"
                )
                report = RunReport(job_id, claim.fence, [row], next_state=NextState.DONE)
                await settlement.settle(adapters.database, [report])
                return job_id


async def _stored_unrung(adapters: Adapters, job: Job) -> JobId:
    """A stored job that no worker was told of."""
    model = next(entry.name for entry in adapters.models if job.kind in entry.kinds)
    new = NewJob(job.kind, job.tenant, canonical(job), model, job.priority)
    (stored,) = await submission.insert_interactive(
        adapters.database, JobIds(adapters.database), [new], reply_to=None, chunk_rows=1, admit=lambda _: None
    )
    assert isinstance(stored, Stored)
    return stored.job_ids[0]


@pytest.fixture(scope="session")
def yyc3_session() -> Iterator[PipelineUnderTest]:
    """One pipeline for the session."""
    with PipelineUnderTest() as running:
        yield running


@pytest.fixture
def yyc3(yyc3_session: PipelineUnderTest) -> Iterator[PipelineUnderTest]:
    """The session's pipeline, with engines that were taught nothing."""
    yield yyc3_session
    yyc3_session.forget()


__all__ = ["PipelineUnderTest", "yyc3", "yyc3_session"]
