"""The Python client: submit jobs, get outcomes. `AsyncClient` has the logic, `Client` is its blocking form."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from uuid import uuid4

from pipeline.batches import Batch, BatchSubmitter
from pipeline.concurrency.backoff import retry_while_unavailable
from pipeline.jobs.cancel import cancel
from pipeline.jobs.follow import follow
from pipeline.jobs.submit import Submitter
from pipeline.jobs.wait import Waiter
from pipeline.store import batches, queries
from pipeline.store.batches import BatchProgress
from pipeline.wiring import Adapters, Wiring
from schemas.errors import InvalidJob, JobNotFound, ResultTimeout
from schemas.ids import BatchId, JobId
from schemas.jobs import Job, StreamedJob, parse_job
from schemas.results import JobState, Outcome
from schemas.streams import StreamEvent

_PROGRESS_SECONDS = 0.25
_NOT_OPEN = "use the client in a with statement: with Client() as client"
P = ParamSpec("P")
T = TypeVar("T")


def _seconds(timeout: float | timedelta | None) -> float | None:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout


@dataclass(frozen=True, slots=True)
class _Opened:
    adapters: Adapters
    waiter: Waiter
    submitter: Submitter
    batches: BatchSubmitter


class AsyncClient:
    """Submits jobs and waits for them, from asyncio. Use it as `async with AsyncClient() as client`.

    Without URLs it uses DATABASE_URL and REDIS_URL, or the running `yyc3 up` of this home.
    """

    def __init__(self, *, database_url: str | None = None, redis_url: str | None = None) -> None:
        self._wiring = Wiring.from_environment(database_url=database_url, redis_url=redis_url)
        self._stack = AsyncExitStack()
        self._opened: _Opened | None = None

    async def __aenter__(self) -> Self:
        adapters = await self._stack.enter_async_context(self._wiring.adapters())
        channel = f"yyc3.settled.{uuid4().hex}"
        waiter = Waiter(adapters.database, adapters.notifier, channel)
        await waiter.start()
        self._stack.push_async_callback(waiter.stop)
        self._opened = _Opened(adapters, waiter, adapters.submitter(channel), adapters.batch_submitter())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def _open(self) -> _Opened:
        if self._opened is None:
            raise RuntimeError(_NOT_OPEN)
        return self._opened

    async def submit(self, job: Job | dict[str, Any]) -> JobId:
        """Store a job that the caller waits for, and return its id.

        With an idempotency key it is safe to call again; without one, another call stores another job.

        Raises:
            InvalidJob, UnknownModel, DuplicateJob: refused, nothing was stored.
            QueueSaturated: the queue is full; nothing was stored, `retry_after_seconds` says when to submit again.
            StoreUnavailable: nothing is known to be stored.
        """
        job_id = await self._open.submitter.submit(job)
        self._open.waiter.track(job_id)
        return job_id

    async def submit_many(
        self,
        jobs: Iterable[Job | dict[str, Any]],
        *,
        name: str = "batch",
        tenant: str = "default",
        idempotency_key: str | None = None,
    ) -> Batch:
        """Store jobs for the bulk lane, all or none, in their order.

        Raises:
            SubmissionError, StoreUnavailable: as `submit`; nothing was stored. `position` names a refused job.
        """
        return await self._open.batches.submit_many(jobs, name=name, tenant=tenant, idempotency_key=idempotency_key)

    async def result(self, job_id: JobId, timeout: float | timedelta | None = None) -> Outcome:  # noqa: ASYNC109 - part of the promise
        """Wait until a job is settled, whichever client submitted it; without `timeout` as long as it takes.

        Raises:
            ResultTimeout: it is not settled yet. It continues, and its result can be requested again.
            JobNotFound: there is no such job.
        """
        try:
            async with asyncio.timeout(_seconds(timeout)):
                return await self._open.waiter.outcome(job_id)
        except TimeoutError as error:
            message = f"job {job_id} is not finished yet; it continues, request its result again later"
            raise ResultTimeout(message, job_id=job_id) from error

    async def stream(self, job: Job | dict[str, Any]) -> AsyncIterator[StreamEvent]:
        """Submit a chat, code or vision job and read its answer as it is generated.

        The text comes in pieces; a RestartEvent discards the text before it, an EndEvent with the outcome
        comes last. A reader may stop, the job continues; `follow` reads it again from the start.

        Raises:
            InvalidJob: also for a kind that is answered in one piece.
        """
        checked = parse_job(job)
        if not isinstance(checked, StreamedJob):
            raise InvalidJob(f"job refused: kind: {checked.kind} is answered in one piece; submit it without stream")
        job_id = await self.submit(checked.model_copy(update={"stream": True}))
        async for event in self.follow(job_id):
            yield event

    async def follow(self, job_id: JobId) -> AsyncIterator[StreamEvent]:
        """Read the answer of a streamed job from its start, whichever client submitted it and however late.

        Raises:
            JobNotFound: there is no such job.
        """
        async for event in follow(self._open.waiter, self._open.adapters.stream_reader, job_id):
            yield event

    async def get(self, job_id: JobId) -> Outcome:
        """Return what is known of a job now, without waiting.

        Raises:
            JobNotFound: there is no such job.
        """
        found = await queries.outcomes_of(self._open.adapters.database, [job_id])
        if job_id not in found:
            raise JobNotFound(f"there is no job {job_id}", job_id=job_id)
        return found[job_id]

    async def list_jobs(
        self, *, state: JobState | None = None, kind: str | None = None, limit: int = 20
    ) -> list[Outcome]:
        """Return the newest jobs, newest first."""
        return await queries.recent_jobs(self._open.adapters.database, state=state, kind=kind, limit=limit)

    async def cancel(self, job_id: JobId) -> bool:
        """Settle a job as cancelled and abort its engine request; False if it was settled before.

        Raises:
            JobNotFound: there is no such job.
        """
        adapters = self._open.adapters
        return await cancel(adapters.database, adapters.notifier, adapters.stream_writer, job_id)

    async def batch_progress(self, batch_id: BatchId) -> BatchProgress:
        """Return the progress of a batch."""
        return await batches.batch_progress(self._open.adapters.database, batch_id)

    async def watch_batch(self, batch_id: BatchId) -> AsyncIterator[BatchProgress]:
        """Yield the progress of a batch four times a second until every job is settled."""
        while True:
            progress = await retry_while_unavailable(lambda: self.batch_progress(batch_id), "waiting for the database")
            yield progress
            if progress.finished:
                return
            await asyncio.sleep(_PROGRESS_SECONDS)

    def batch_outcomes(self, batch_id: BatchId) -> AsyncIterator[Outcome]:
        """Yield the outcomes of a batch in the order in which its jobs were submitted, including unsettled jobs."""
        return batches.batch_outcomes(self._open.adapters.database, batch_id)


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Client", P], T]:
    """Make the blocking form of a method, with its signature and documentation."""

    @wraps(method)
    def blocking(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(method(self._async, *args, **kwargs))

    return blocking


def _iterating(
    method: Callable[Concatenate[AsyncClient, P], AsyncIterator[T]],
) -> Callable[Concatenate["Client", P], Iterator[T]]:
    """Make the blocking form of an iterator, with its signature and documentation."""

    @wraps(method)
    def iterating(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        items = method(self._async, *args, **kwargs)

        async def following() -> T | None:
            return await anext(items, None)

        while (item := self._run(following())) is not None:
            yield item

    return iterating


class Client:
    """The blocking form of AsyncClient; safe to use from many threads. Use it as `with Client() as client`.

    Every method runs that of AsyncClient on a loop in a thread of its own, so jobs submitted by many
    threads share messages too.
    """

    def __init__(self, *, database_url: str | None = None, redis_url: str | None = None) -> None:
        self._async = AsyncClient(database_url=database_url, redis_url=redis_url)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    submit = _blocking(AsyncClient.submit)
    result = _blocking(AsyncClient.result)
    stream = _iterating(AsyncClient.stream)
    follow = _iterating(AsyncClient.follow)
    get = _blocking(AsyncClient.get)
    list_jobs = _blocking(AsyncClient.list_jobs)
    cancel = _blocking(AsyncClient.cancel)
    batch_progress = _blocking(AsyncClient.batch_progress)
    watch_batch = _iterating(AsyncClient.watch_batch)
    batch_outcomes = _iterating(AsyncClient.batch_outcomes)

    def submit_many(
        self,
        jobs: Iterable[Job | dict[str, Any]],
        *,
        name: str = "batch",
        tenant: str = "default",
        idempotency_key: str | None = None,
    ) -> Batch:
        """Store jobs for the bulk lane, all or none, in their order; see AsyncClient.submit_many."""
        # Consumed here: the caller's generator may use this client, and must not run on the client's loop.
        given = list(jobs)
        return self._run(self._async.submit_many(given, name=name, tenant=tenant, idempotency_key=idempotency_key))

    submit_many.__doc__ = AsyncClient.submit_many.__doc__

    def __enter__(self) -> Self:
        started = threading.Event()

        def live() -> None:
            with asyncio.Runner(loop_factory=self._async._wiring.loop_factory()) as runner:
                self._loop = runner.get_loop()
                self._loop.call_soon(started.set)
                self._loop.run_forever()

        self._thread = threading.Thread(target=live, name="yyc3-client", daemon=True)
        self._thread.start()
        started.wait()
        try:
            self._run(self._async.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._run(self._async.__aexit__(kind, value, traceback))
        finally:
            self._stop()

    def _stop(self) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise RuntimeError(_NOT_OPEN)
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the caller's thread ends the wait, not the job
            raise
