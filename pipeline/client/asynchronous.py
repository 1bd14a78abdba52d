"""The client for asyncio, which has the logic of both forms."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from pipeline.batches import Batch, BatchDraft, BatchSubmitter
from pipeline.client.batches import AsyncBatches
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
from schemas.ids import batch_id as as_batch_id
from schemas.ids import job_id as as_job_id
from schemas.job import Job
from schemas.jobs import StreamedJob, parse_job
from schemas.results import JobState, Outcome
from schemas.streams import StreamEvent

_PROGRESS_SECONDS = 0.25
_LONGEST_SECONDS = 1e9
NOT_OPEN = "use the client in a with statement: with Client() as client"
FORKED = (
    "this client was opened before a fork, and its connections belong to the parent: open another one in this process"
)


def _seconds(timeout: float | timedelta | None) -> float | None:
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if seconds is None or seconds == inf:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not abs(seconds) < _LONGEST_SECONDS:
        raise InvalidJob("timeout: must be a number of seconds, or a timedelta")
    return seconds


def _not_finished(job_id: JobId) -> ResultTimeout:
    return ResultTimeout(
        f"job {job_id} is not finished yet; it continues, request its result again later", job_id=job_id
    )


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
        self._pid: int | None = None
        self.batches = AsyncBatches(lambda: (self._open.adapters.database, self._open.adapters.file_submitter()))

    async def __aenter__(self) -> Self:
        adapters = await self._stack.enter_async_context(self._wiring.adapters())
        channel = f"yyc3.settled.{uuid4().hex}"
        waiter = Waiter(adapters.database, adapters.notifier, channel)
        await waiter.start()
        self._stack.push_async_callback(waiter.stop)
        submitter = adapters.submitter(channel, on_stored=waiter.track)
        self._opened = _Opened(adapters, waiter, submitter, adapters.batch_submitter())
        self._pid = os.getpid()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.forked:
            await self._stack.aclose()

    @property
    def forked(self) -> bool:
        """Whether this process is a copy of the one that opened the client."""
        return self._pid is not None and self._pid != os.getpid()

    @property
    def _open(self) -> _Opened:
        if self._opened is None:
            raise RuntimeError(NOT_OPEN)
        if self.forked:
            raise RuntimeError(FORKED)
        return self._opened

    async def submit(self, job: Job | dict[str, Any]) -> JobId:
        """Store a job that the caller waits for, and return its id.

        With an idempotency key it is safe to call again; without one, another call stores another job.

        Raises:
            InvalidJob, UnknownModel, DuplicateJob: refused, nothing was stored.
            QueueSaturated: the queue is full; nothing was stored, `retry_after_seconds` says when to submit again.
            StoreUnavailable: nothing is known to be stored.
        """
        return await self._open.submitter.submit(job)

    async def submit_many(
        self,
        jobs: Iterable[Job | dict[str, Any]],
        *,
        name: str = "batch",
        tenant: str | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Store jobs for the bulk lane, all or none, in their order.

        All jobs belong to one tenant: `tenant`, or without it the one that the first job names.

        Raises:
            SubmissionError, StoreUnavailable: as `submit`; nothing was stored. `position` names a refused job.
        """
        return await self._open.batches.submit_many(jobs, name=name, tenant=tenant, idempotency_key=idempotency_key)

    def draft_batch(self, *, name: str, tenant: str | None, idempotency_key: str | None) -> BatchDraft:
        """Begin a batch whose jobs come little by little, see submit_many: `with`, then `add` and `submit`."""
        return self._open.batches.draft(name=name, tenant=tenant, idempotency_key=idempotency_key)

    async def result(self, job_id: JobId, timeout: float | timedelta | None = None) -> Outcome:  # noqa: ASYNC109 - part of the promise
        """Wait until a job is settled, whichever client submitted it; without `timeout` as long as it takes.

        Raises:
            ResultTimeout: it is not settled yet. It continues, and its result can be requested again.
            JobNotFound: there is no such job.
        """
        try:
            async with asyncio.timeout(_seconds(timeout)):
                return await self._open.waiter.outcome(as_job_id(job_id))
        except TimeoutError as error:
            raise _not_finished(job_id) from error

    async def stream(
        self,
        job: Job | dict[str, Any],
        timeout: float | timedelta | None = None,  # noqa: ASYNC109 - part of the promise
    ) -> AsyncIterator[StreamEvent]:
        """Submit a chat, code or vision job and read its answer as it is generated.

        The text comes in pieces; a RestartEvent discards the text before it, an EndEvent with the outcome
        comes last. A reader may stop, the job continues; `follow` reads it again from the start.

        Raises:
            InvalidJob: also for a kind that is answered in one piece.
            ResultTimeout: it did not end within `timeout`. It continues, and `follow` reads it again.
        """
        checked = parse_job(job)
        if not isinstance(checked, StreamedJob):
            raise InvalidJob(f"job refused: kind: {checked.kind} is answered in one piece; submit it without stream")
        job_id = await self.submit(checked.model_copy(update={"stream": True}))
        async for event in self.follow(job_id, timeout):
            yield event

    async def follow(
        self,
        job_id: JobId,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109 - part of the promise
    ) -> AsyncIterator[StreamEvent]:
        """Read the answer of a streamed job from its start, whichever client submitted it and however late.

        Raises:
            JobNotFound: there is no such job.
            ResultTimeout: it did not end within `timeout`, counted from this call.
        """
        job_id = as_job_id(job_id)
        events = follow(self._open.waiter, self._open.adapters.stream_reader, job_id)
        seconds = _seconds(timeout)
        end = None if seconds is None else asyncio.get_running_loop().time() + seconds
        try:
            while True:
                async with asyncio.timeout_at(end):
                    event = await anext(events, None)
                if event is None:
                    return
                yield event
        except TimeoutError as error:
            raise _not_finished(job_id) from error
        finally:
            await events.aclose()

    async def get(self, job_id: JobId) -> Outcome:
        """Return what is known of a job now, without waiting.

        Raises:
            JobNotFound: there is no such job.
        """
        job_id = as_job_id(job_id)
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
        return await cancel(adapters.database, adapters.notifier, adapters.stream_writer, as_job_id(job_id))

    async def batch_progress(self, batch_id: BatchId) -> BatchProgress:
        """Return the progress of a batch.

        Raises:
            BatchNotFound: there is no such batch.
        """
        return await batches.batch_progress(self._open.adapters.database, as_batch_id(batch_id))

    async def watch_batch(self, batch_id: BatchId) -> AsyncIterator[BatchProgress]:
        """Yield the progress of a batch four times a second until every job is settled."""
        while True:
            progress = await retry_while_unavailable(lambda: self.batch_progress(batch_id), "waiting for the database")
            yield progress
            if progress.finished:
                return
            await asyncio.sleep(_PROGRESS_SECONDS)

    def batch_outcomes(self, batch_id: BatchId) -> AsyncIterator[Outcome]:
        """Yield the outcomes of a batch in the order in which its jobs were submitted, including unsettled jobs.

        Raises:
            BatchNotFound: there is no such batch.
        """
        return batches.batch_outcomes(self._open.adapters.database, as_batch_id(batch_id))
