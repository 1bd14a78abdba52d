"""A running pipeline for the test suite of a caller: real Postgres, Redis and workers, simulated engines.

    pytest_plugins = ["pipeline.testing"]           # in conftest.py


    def test_refunds_are_found(yyc3):
        yyc3.stub_answer("箱子压扁了", "refund")
        with yyc3.client() as client:
            job_id = client.submit({"kind": "chat", "messages": [{"role": "user", "content": "箱子压扁了"}]})
            assert client.result(job_id, timeout=10).result.text == "refund"

It is started once a session; stubs and faults of a test are removed after it. Nothing else on the machine
is touched: data is in a temporary folder, every port is a free one.
"""

import asyncio
import os
import sys
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import httpx
import pytest

from pipeline.client import AsyncClient, Client
from pipeline.local.addresses import StackAddresses, write_stack_addresses
from pipeline.local.client import SupervisorClient
from pipeline.local.readiness import wait_until
from pipeline.settings import load_settings
from pipeline.store import Database, answer_cache, claims, settlement, submission
from pipeline.store.ids import JobIds
from pipeline.store.new_rows import NewJob
from pipeline.store.schema import migrate
from pipeline.store.settlement import ChunkState, SettledRow, Settlement
from pipeline.wiring import Adapters, Wiring
from schemas.doorbells import Lane
from schemas.errors import ErrorCode, InvalidSetting
from schemas.ids import JobId
from schemas.job import MIN_PRIORITY, Job
from schemas.jobs import canonical, parse_job
from schemas.results import JobState
from simulator import SimulatorOptions, serve

_READY_SECONDS = 30.0
_OVERRIDDEN = ("DATABASE_URL", "REDIS_URL", "BROKER_URL", "AI_BASE_URL", "AI_MODEL", "YYC3_MODELS_FILE")
# A worker that a test kills is replaced soon, and a request to an engine that hangs times out soon.
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
        self._scripts: dict[str, list[dict[str, Any]]] = {}
        self._starts: dict[str, int] = {}
        self._background: list[asyncio.Task[None]] = []
        self.home = Path(self._folder.name)
        self.environment = {
            key: value for key, value in os.environ.items() if key not in _OVERRIDDEN and not key.startswith("YYC3_")
        } | {"YYC3_HOME": str(self.home)}
        """For processes that should find this pipeline, such as `yyc3` commands."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._supervisor = SupervisorClient(self.home, ["postgres", "valkey"], tcp=True)
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._run(self._cancel_background())
        self._supervisor.close()
        self._http.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._folder.cleanup()

    def client(self) -> Client:
        """Return a client of this pipeline, for a with statement."""
        return Client(database_url=self.database_url, redis_url=self.redis_url)

    def async_client(self) -> AsyncClient:
        """Return a client for asyncio."""
        return AsyncClient(database_url=self.database_url, redis_url=self.redis_url)

    def start_intake(self) -> None:
        """Run the intake queue too, for callers that use Celery; does nothing if it runs."""
        if "intake" not in self._starts:
            self._start_process("intake", "workers.intake")
            self._wait_until_ready("intake")

    def stub_answer(
        self, when: str, text: str, *, model: str | None = None, times: int | None = None, cut_off: bool = False
    ) -> None:
        """Let the engines answer `text` to requests with `when` in their last user message.

        The newest stub comes first. Labels are answered with the word or letter that the prompt asks for.

        Args:
            when: a part of the message; an empty text is part of every message.
            text: the answer; a constraint of the request is not applied to it.
            model: only this model; default: all.
            times: how often; default: without limit.
            cut_off: as if `max_tokens` had cut it.
        """
        finish_reason = "length" if cut_off else None
        self._script({"when": when, "answer": text, "finish_reason": finish_reason, "times": times}, model)

    def inject_fault(
        self, when: str, fault: str, *, model: str | None = None, times: int | None = None, seconds: float | None = None
    ) -> None:
        """Let the engines fail on requests with `when` in their last user message.

        Args:
            when: a part of the message; an empty text is part of every message.
            fault: an HTTP status such as `503`, or a fault of docs/simulator.md: slow, hang, cut, garbage, abort, empty, crash.
            model: only this model; default: all.
            times: how often; default: without limit.
            seconds: how long, for slow and hang.
        """
        self._script({"when": when, "fault": fault, "times": times, "seconds": seconds}, model)

    def dead_letter(self, job: Job | dict[str, Any], code: ErrorCode) -> JobId:
        """Store a job that ended with this code, as a worker stores it; no engine is asked.

        For codes that need a long time or a bug to occur by themselves.
        """
        return self._run(self._dead_letter(parse_job(job), code))

    def kill_worker(self, lane: Lane) -> None:
        """Kill a worker with SIGKILL and start another one; its chunks are requeued within a few seconds."""
        name = f"worker-{lane}"
        self._supervisor.kill(name)
        self._start_process(name, "workers.main", lane)
        self._wait_until_ready(name)

    def reset(self) -> None:
        """Remove all stubs and faults, and every cached answer."""
        self._scripts.clear()
        self._run(self._delete_cached_answers())
        for url in self._engines.values():
            self._http.delete(f"{url}/simulator/answers").raise_for_status()

    def _start(self) -> None:
        # A caller's program may be of any language, and not every client knows sockets.
        self.database_url, self.redis_url = self._supervisor.tcp_urls["postgres"], self._supervisor.tcp_urls["valkey"]
        models = Wiring(load_settings(home=self.home, **dict.fromkeys(_OVERRIDDEN))).models
        for entry in models:
            options = SimulatorOptions(
                entry.name,
                port=0,
                speed=self._speed,
                max_num_seqs=entry.max_num_seqs,
                max_model_len=entry.max_model_len,
            )
            self._engines[entry.name] = self._run(self._engine(options))
        addresses = StackAddresses(database_url=self.database_url, redis_url=self.redis_url, simulated=self._engines)
        write_stack_addresses(self.home, addresses)
        self._wiring = Wiring(load_settings(home=self.home, lease_seconds=_LEASE.total_seconds()))
        for lane in Lane:
            self._start_process(f"worker-{lane}", "workers.main", lane)
        migrate.upgrade(self.database_url)
        self._run(self._in_background(self._recover()))
        for lane in Lane:
            self._wait_until_ready(f"worker-{lane}")

    def _script(self, line: dict[str, Any], model: str | None) -> None:
        """Add a line to the scripts of the engines."""
        if model is not None and model not in self._engines:
            raise InvalidSetting(f"model: {model!r} is not simulated here; known are {', '.join(self._engines)}")
        given = {key: value for key, value in line.items() if value is not None}
        self._run(self._delete_cached_answers())  # earlier answers are not valid any more
        for name, url in self._engines.items():
            if model in {None, name}:
                lines = self._scripts.setdefault(name, [])
                lines.insert(0, given)
                response = self._http.put(f"{url}/simulator/answers", json={"answers": lines})
                if response.status_code != 200:
                    lines.pop(0)
                    raise InvalidSetting(response.json()["error"]["message"])

    def _start_process(self, name: str, module: str, *arguments: str) -> None:
        self._starts[name] = self._starts.get(name, 0) + 1
        environment = dict.fromkeys(_OVERRIDDEN, "") | _IMPATIENT | {"YYC3_HOME": str(self.home)}
        argv = [sys.executable, "-P", "-m", module, *arguments]
        self._supervisor.start(name, argv, environment=environment, log=self.home / f"{name}.log")

    def _wait_until_ready(self, name: str) -> None:
        log = self.home / f"{name}.log"

        def is_ready() -> bool:
            return log.exists() and log.read_text(errors="replace").count('"event": "ready"') >= self._starts[name]

        if not wait_until(is_ready, _READY_SECONDS):
            raise InvalidSetting(f"{name} did not start within {_READY_SECONDS:.0f} s; its log is {log}")

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self._background.append(asyncio.create_task(work))

    async def _cancel_background(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _engine(self, options: SimulatorOptions) -> str:
        listening: asyncio.Future[str] = self._loop.create_future()
        await self._in_background(serve(options, listening.set_result))
        return await listening

    async def _recover(self) -> None:
        async with self._wiring.adapters() as adapters:
            await adapters.recovery().sweep_forever()

    async def _delete_cached_answers(self) -> None:
        database = await Database(self.database_url).open()
        try:
            await answer_cache.delete_all(database)
        finally:
            await database.close()

    async def _dead_letter(self, job: Job, code: ErrorCode) -> JobId:
        async with self._wiring.adapters() as adapters:
            while True:
                job_id = await _store_without_doorbell(adapters, job)
                claimed = await claims.claim_named(
                    adapters.database, [(job_id, uuid4())], worker="test", lease=timedelta(seconds=30)
                )
                if not claimed:
                    continue  # recovery published its doorbell, and a worker was first
                (claim,) = claimed.values()
                state = _STATES.get(code, JobState.FAILED)
                row = SettledRow(
                    job_id, 0, job.tenant, job.kind, state, code=code, message=f"stored for a test: {code}"
                )
                await settlement.settle(
                    adapters.database, [Settlement(job_id, claim.fence, [row], next_state=ChunkState.DONE)]
                )
                return job_id


async def _store_without_doorbell(adapters: Adapters, job: Job) -> JobId:
    """Store a job without a doorbell."""
    model = next(entry.name for entry in adapters.models if job.kind in entry.kinds)
    # The most urgent there can be: its claim never gives way to another job.
    new = NewJob(job.kind, job.tenant, canonical(job), model, MIN_PRIORITY)
    stored = await submission.insert_interactive(
        adapters.database, JobIds(adapters.database), [new], reply_to=None, chunk_rows=1, admit=lambda _: None
    )
    (entry,) = stored.entries
    assert isinstance(entry, int)
    return entry


@pytest.fixture(scope="session")
def yyc3_session() -> Iterator[PipelineUnderTest]:
    """One pipeline for the session."""
    with PipelineUnderTest() as running:
        yield running


@pytest.fixture
def yyc3(yyc3_session: PipelineUnderTest) -> Iterator[PipelineUnderTest]:
    """The session's pipeline, whose engines have no stubs and faults."""
    yield yyc3_session
    yyc3_session.reset()
