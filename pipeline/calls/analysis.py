"""Analyse calls: submit their jobs in windows, and return a report for each. Memory does not grow with their number."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar
from uuid import uuid4

from pipeline.batches import Batch, BatchSubmitter
from pipeline.calls.plan import PlannedCall, plan
from pipeline.calls.report import report_of
from pipeline.concurrency.backoff import retry_while_unavailable
from pipeline.store import Database, batches, queries
from schemas.calls import Call, CallReport
from schemas.errors import ErrorCode, InvalidJob
from schemas.ids import BatchId
from schemas.results import Outcome

_WINDOW_JOBS = 20_000
_CONCURRENT_WINDOWS = 2
_LOOK_SECONDS = 0.2
_WAITING = "waiting for the database"
T = TypeVar("T")


@dataclass(slots=True)
class AnalysisProgress:
    """Progress in jobs and calls.

    Attributes:
        cached: of the succeeded, those that were answered from the cache.
        waits_for: why a job waits for another attempt.
        batch_ids: batches that were submitted, and whose jobs may be running.
    """

    calls: int = 0
    jobs: int = 0
    settled: int = 0
    succeeded: int = 0
    failed: int = 0
    cached: int = 0
    waits_for: ErrorCode | None = None
    batch_ids: list[BatchId] = field(default_factory=list)


async def analyze(
    submitter: BatchSubmitter,
    database: Database,
    calls: Iterable[Call],
    *,
    name: str,
    model: str | None = None,
    cache: bool = True,
    on_progress: Callable[[AnalysisProgress], None] = lambda _: None,
) -> AsyncIterator[CallReport]:
    """Yield reports in the order of the calls.

    A few windows of jobs are in flight at once; the reports of a window come when all its jobs are settled.

    Raises:
        PipelineError: a service is unavailable. Submitted jobs continue.
    """
    analysis = _Analysis(submitter, database, name, on_progress)
    in_flight: deque[tuple[list[PlannedCall], Batch | None]] = deque()
    for window in _windows(calls, model, cache):
        in_flight.append((window, await analysis.submit(window)))
        if len(in_flight) == _CONCURRENT_WINDOWS:
            async for report in analysis.reports(*in_flight.popleft()):
                yield report
    for window, batch in in_flight:
        async for report in analysis.reports(window, batch):
            yield report


def _windows(calls: Iterable[Call], model: str | None, cache: bool) -> Iterator[list[PlannedCall]]:
    window: list[PlannedCall] = []
    jobs = 0
    for call in calls:
        planned = plan(call, model, cache=cache)
        if window and jobs + len(planned.jobs) > _WINDOW_JOBS:
            yield window
            window, jobs = [], 0
        window.append(planned)
        jobs += len(planned.jobs)
    if window:
        yield window


def _while_away(read: Callable[[], Awaitable[T]], /) -> Awaitable[T]:
    return retry_while_unavailable(read, _WAITING)


def _leave_out(window: list[PlannedCall], error: InvalidJob) -> None:
    """Move the refused job of a window to the problems of its call."""
    position = error.facts["position"]
    for planned in window:
        if position < len(planned.jobs):
            # It is numbered within a window, unknown outside.
            planned.leave_out(position, InvalidJob(error.message.partition(": ")[2]))
            return
        position -= len(planned.jobs)
    raise AssertionError("the position is that of a job")


class _Analysis:
    """One analysis: its windows are batches with keys, so that they can be submitted again."""

    def __init__(
        self,
        submitter: BatchSubmitter,
        database: Database,
        name: str,
        on_progress: Callable[[AnalysisProgress], None],
    ) -> None:
        self._submitter = submitter
        self._database = database
        self._name = name
        self._on_progress = on_progress
        self._progress = AnalysisProgress()
        self._id = uuid4().hex
        self._windows = 0
        self._finished_jobs = 0

    async def submit(self, window: list[PlannedCall]) -> Batch | None:
        """Submit the jobs of a window; None if it has none.

        Fails at once if there is no database at the beginning; later it is waited for.
        """
        first, key = self._windows == 0, f"{self._id}.{self._windows}"
        self._windows += 1
        if first:
            await queries.queue_states(self._database)
        while jobs := [job for planned in window for job in planned.jobs]:
            submit = partial(self._submitter.submit_many, jobs, name=self._name, idempotency_key=key)
            try:
                batch = await retry_while_unavailable(submit, _WAITING)
            except InvalidJob as error:
                if "position" not in error.facts:
                    raise
                _leave_out(window, error)
                continue
            self._progress.calls += len(window)
            self._progress.jobs += len(jobs)
            self._progress.batch_ids.append(batch.batch_id)
            self._on_progress(self._progress)
            return batch
        self._progress.calls += len(window)
        return None

    async def reports(self, window: list[PlannedCall], batch: Batch | None) -> AsyncIterator[CallReport]:
        """Wait until the jobs of a window are settled, and yield its reports."""
        outcomes: AsyncIterator[Outcome] | None = None
        if batch is not None:
            await self._settled(batch)
            outcomes = batches.batch_outcomes(self._database, batch.batch_id, reading=_while_away)
        for planned in window:
            found = [await anext(outcomes) for _ in planned.jobs] if outcomes is not None else []
            yield report_of(planned, found)

    async def _settled(self, batch: Batch) -> None:
        progress = self._progress
        while True:
            state = await retry_while_unavailable(
                lambda: batches.batch_progress(self._database, batch.batch_id), _WAITING
            )
            progress.settled, progress.waits_for = self._finished_jobs + state.settled, state.last_code
            self._on_progress(progress)
            if state.finished:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        self._finished_jobs = progress.settled
        progress.succeeded += state.succeeded
        progress.cached += state.cached
        progress.batch_ids.remove(batch.batch_id)
        progress.failed += state.settled - state.succeeded
