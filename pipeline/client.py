"""The Python door: submit jobs, get outcomes. `AsyncClient` holds the logic, `Client` the same for programs without asyncio."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

from pipeline.jobs.cancel import cancel
from pipeline.jobs.follow import follow
from pipeline.jobs.submit import Batch
from pipeline.jobs.wait import Waiter, patiently
from pipeline.store import queries
from pipeline.store.queries import Progress
from pipeline.wiring import Adapters, Wiring
from schemas.errors import InvalidJob, JobNotFound, ResultTimeout
from schemas.ids import BatchId, JobId
from schemas.jobs import Job, StreamedJob, parse_job
from schemas.results import JobState, Outcome
from schemas.streams import StreamEvent

_PROGRESS_SECONDS = 0.25
T = TypeVar("T")


def _seconds(timeout: float | timedelta | None) -> float | None:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout


class AsyncClient:
    """Submits jobs and waits for them, from asyncio. Use it as `async with AsyncClient() as client`.

    Without URLs it takes DATABASE_URL and REDIS_URL, or finds the `yyc3 up` of this home.
    """

    def __init__(self, *, database_url: str | None = None, redis_url: str | None = None) -> None:
        self._wiring = Wiring.from_environment(database_url=database_url, redis_url=redis_url)
        self._stack = AsyncExitStack()
        self._adapters: Adapters | None = None

    async def __aenter__(self) -> Self:
        self._adapters = await self._stack.enter_async_context(self._wiring.adapters())
        channel = f"yyc3.settled.{uuid4().hex}"
        self._waiter = Waiter(self._adapters.database, self._adapters.whispers, channel)
        self._submitter = self._adapters.submitter(channel)
        await self._waiter.start()
        self._stack.push_async_callback(self._waiter.stop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def _open(self) -> Adapters:
        if self._adapters is None:
            raise RuntimeError("use the client in a with statement: with Client() as client")
        return self._adapters

    async def submit(self, job: Job | dict[str, Any]) -> JobId:
        """Store a job that somebody waits for; see Submitter.submit."""
        _ = self._open
        job_id = await self._submitter.submit(job)
        self._waiter.expect(job_id)
        return job_id

    async def submit_many(
        self,
        jobs: Iterable[Job | dict[str, Any]],
        *,
        name: str = "batch",
        tenant: str = "default",
        idempotency_key: str | None = None,
    ) -> Batch:
        """Store jobs for the bulk lane, all or none; see Submitter.submit_many."""
        _ = self._open
        return await self._submitter.submit_many(jobs, name=name, tenant=tenant, idempotency_key=idempotency_key)

    async def result(self, job_id: JobId, timeout: float | timedelta | None = None) -> Outcome:  # noqa: ASYNC109 - part of the promise
        """Wait until a job is settled, whoever submitted it; without `timeout` for as long as it takes.

        Raises:
            ResultTimeout: it is not settled yet. It goes on, and may be asked for again.
            JobNotFound: there is no such job.
        """
        _ = self._open
        try:
            async with asyncio.timeout(_seconds(timeout)):
                return await self._waiter.outcome(job_id)
        except TimeoutError as error:
            raise ResultTimeout(
                f"job {job_id} is not finished yet; it goes on, ask for it again later",
                job_id=job_id,
            ) from error

    async def stream(self, job: Job | dict[str, Any]) -> AsyncIterator[StreamEvent]:
        """Submit a chat, code or vision job and read its answer while it is written.

        Text comes piece by piece; a RestartEvent says to forget it, an EndEvent with the outcome comes last. A reader that
        stops leaves the job to go on; `follow` reads it again from the start.

        Raises:
            InvalidJob: also for a kind that answers in one word.
        """
        checked = parse_job(job)
        if not isinstance(checked, StreamedJob):
            raise InvalidJob(f"job refused: kind: {checked.kind} answers in one piece; submit it without stream")
        job_id = await self.submit(checked.model_copy(update={"stream": True}))
        async for event in self.follow(job_id):
            yield event

    async def follow(self, job_id: JobId) -> AsyncIterator[StreamEvent]:
        """Read the answer of a streamed job from its start, whoever submitted it and however late.

        Raises:
            JobNotFound: there is no such job.
        """
        async for event in follow(self._waiter, self._open.stream_reader, job_id):
            yield event

    async def look(self, job_id: JobId) -> Outcome:
        """What is known of a job right now.

        Raises:
            JobNotFound: there is no such job.
        """
        found = await queries.outcomes_of(self._open.database, [job_id])
        if job_id not in found:
            raise JobNotFound(f"there is no job {job_id}", job_id=job_id)
        return found[job_id]

    async def recent(self, *, state: JobState | None = None, kind: str | None = None, limit: int = 20) -> list[Outcome]:
        """The newest jobs first."""
        return await queries.recent_jobs(self._open.database, state=state, kind=kind, limit=limit)

    async def cancel(self, job_id: JobId) -> bool:
        """Settle a job as cancelled; False where it was settled already. An engine that is answering it stops.

        Raises:
            JobNotFound: there is no such job.
        """
        adapters = self._open
        return await cancel(adapters.database, adapters.whispers, adapters.stream_writer, job_id)

    async def progress(self, batch_id: BatchId) -> Progress:
        """How far a batch is."""
        return await queries.batch_progress(self._open.database, batch_id)

    async def watch(self, batch_id: BatchId) -> AsyncIterator[Progress]:
        """Progress four times a second until every job of a batch is settled; the last one says so."""
        while True:
            progress = await patiently(lambda: self.progress(batch_id))
            yield progress
            if progress.finished:
                return
            await asyncio.sleep(_PROGRESS_SECONDS)

    def outcomes(self, batch_id: BatchId) -> AsyncIterator[Outcome]:
        """Outcomes of a batch in the order its jobs were submitted; unsettled ones too, with their state."""
        return queries.batch_outcomes(self._open.database, batch_id)


class Client:
    """The same for programs without asyncio; safe to use from many threads. Use it as `with Client() as client`.

    Every method runs AsyncClient's on a loop in a thread of its own, so jobs submitted by many threads share messages too.
    """

    def __init__(self, *, database_url: str | None = None, redis_url: str | None = None) -> None:
        self._async = AsyncClient(database_url=database_url, redis_url=redis_url)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

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
            raise RuntimeError("use the client in a with statement: with Client() as client")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the caller's thread ends the wait, not the job
            raise

    def submit(self, job: Job | dict[str, Any]) -> JobId:
        """See AsyncClient.submit."""
        return self._run(self._async.submit(job))

    def submit_many(
        self,
        jobs: Iterable[Job | dict[str, Any]],
        *,
        name: str = "batch",
        tenant: str = "default",
        idempotency_key: str | None = None,
    ) -> Batch:
        """See AsyncClient.submit_many."""
        # Taken here: the caller's generator may use this client, and must not run on the client's loop.
        given = list(jobs)
        return self._run(self._async.submit_many(given, name=name, tenant=tenant, idempotency_key=idempotency_key))

    def result(self, job_id: JobId, timeout: float | timedelta | None = None) -> Outcome:
        """See AsyncClient.result."""
        return self._run(self._async.result(job_id, timeout))

    def stream(self, job: Job | dict[str, Any]) -> Iterator[StreamEvent]:
        """See AsyncClient.stream."""
        return self._iterate(self._async.stream(job))

    def follow(self, job_id: JobId) -> Iterator[StreamEvent]:
        """See AsyncClient.follow."""
        return self._iterate(self._async.follow(job_id))

    def look(self, job_id: JobId) -> Outcome:
        """See AsyncClient.look."""
        return self._run(self._async.look(job_id))

    def recent(self, *, state: JobState | None = None, kind: str | None = None, limit: int = 20) -> list[Outcome]:
        """See AsyncClient.recent."""
        return self._run(self._async.recent(state=state, kind=kind, limit=limit))

    def cancel(self, job_id: JobId) -> bool:
        """See AsyncClient.cancel."""
        return self._run(self._async.cancel(job_id))

    def progress(self, batch_id: BatchId) -> Progress:
        """See AsyncClient.progress."""
        return self._run(self._async.progress(batch_id))

    def watch(self, batch_id: BatchId) -> Iterator[Progress]:
        """See AsyncClient.watch."""
        return self._iterate(self._async.watch(batch_id))

    def outcomes(self, batch_id: BatchId) -> Iterator[Outcome]:
        """See AsyncClient.outcomes."""
        return self._iterate(self._async.outcomes(batch_id))

    def _iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> T | None:
            return await anext(items, None)

        while (item := self._run(following())) is not None:
            yield item


__all__ = ["AsyncClient", "Client"]
