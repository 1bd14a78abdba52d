"""Rows of a run to the engine, in micro-batches where they allow it, and what to do when a try fails."""

import asyncio
import time
from collections.abc import Sequence

import structlog

from pipeline import kinds
from pipeline.batching import micro_batches
from pipeline.engine.client import BatchRouteMissing
from pipeline.engine.pool import Endpoint, EnginePool
from pipeline.kinds import Answer
from pipeline.streams import TRIES_OF_A_RUN, StreamWriter
from pipeline.telemetry import fault
from schemas.errors import (
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineUnavailable,
    InvalidOutput,
    OwnFault,
    RequestRejected,
)
from schemas.messages import Lane
from workers.run import Asking, Row, Run

_log = structlog.get_logger(__name__)
BULK_PRIORITY = 100
"""Added to the engine priority of bulk rows, so that chat goes first where the engine schedules by priority."""


class Scheduler:
    """Sends the rows of runs to one model's endpoints, and what they say piece by piece to whoever reads it."""

    def __init__(self, pool: EnginePool, streams: StreamWriter) -> None:
        self._pool = pool
        self._streams = streams

    async def send(self, run: Run, rows: Sequence[Row], stop: asyncio.Event) -> None:
        """Send rows until each was tried once, here or at another endpoint; what came of them stands in the run.

        Rows that failed before go alone: if one of them breaks its engine, it breaks it for nobody else. After `stop` is
        set nothing more is sent; what is in flight goes on.
        """
        fresh = [(i, row.ask) for i, row in enumerate(rows) if row.failed_tries == 0]
        again = [[row] for row in rows if row.failed_tries > 0]
        batches = [[rows[i] for i in indexes] for indexes in micro_batches(fresh, self._pool.entry.micro_batch_rows)]
        async with asyncio.TaskGroup() as group:
            for batch in batches + again:
                job_ids = tuple(row.claimed.job_id for row in batch)
                asking = Asking(group.create_task(self._try_batch(run, batch, stop)), job_ids)
                run.asking.update(dict.fromkeys(job_ids, asking))
        run.asking.clear()

    async def _try_batch(self, run: Run, batch: list[Row], stop: asyncio.Event) -> None:
        """Try a micro-batch at one endpoint after another until one takes it."""
        avoid: list[str] = []
        while batch:
            async with self._pool.use(len(batch), avoid) as endpoint:
                if stop.is_set() or run.lost:
                    return
                batch = self._worth_asking(run, batch)  # the wait for a seat may have been long
                if not batch:
                    return
                try:
                    error, batch = await self._at(run, batch, endpoint, stop)
                except Exception as mistake:  # noqa: BLE001 - it costs these rows a try, not the chunk; the log names it
                    _log.error(
                        "a try broke in our own code",
                        model=self._pool.entry.name,
                        rows=len(batch),
                        fault=fault(mistake),
                    )
                    own = OwnFault(f"a mistake in this program: {fault(mistake)}")
                    for row in batch:
                        if row.claimed.job_id in run.left:
                            run.fail_try(row, own, endpoint)
                    return
            if error is None:
                return
            avoid.append(endpoint.url)
            if len(set(avoid)) >= self._pool.replicas or not error.retryable:
                return
            batch = [row for row in batch if row.claimed.job_id in run.left]

    def _worth_asking(self, run: Run, batch: Sequence[Row]) -> list[Row]:
        """Without the rows that were cancelled or whose deadline has come."""
        for row in batch:
            if row.claimed.job_id in run.left and run.past_deadline(row.claimed):
                run.expire(row.claimed.job_id)
        return [row for row in batch if row.claimed.job_id in run.left]

    async def _at(
        self, run: Run, batch: list[Row], endpoint: Endpoint, stop: asyncio.Event
    ) -> tuple[EngineError | None, list[Row]]:
        """One try at one endpoint; returns what went wrong for all, and the rows that may go elsewhere."""
        now = time.perf_counter()
        for row in batch:
            row.sent_at = row.sent_at or now
        priority = run.claim.priority + (BULK_PRIORITY if run.claim.lane is Lane.BULK else 0)
        try:
            await self._pool.facts_of(endpoint)
            if len(batch) == 1 or not endpoint.batch_route:
                answers = await self._singly(run, batch, endpoint, priority)
            else:
                answers = await self._together(run, batch, endpoint, priority)
        except EngineError as error:
            return await self._whole_failed(run, batch, endpoint, error, stop)
        for row, answer in zip(batch, answers, strict=True):
            self._judge(run, row, answer, endpoint)
        return None, []

    async def _together(
        self, run: Run, batch: list[Row], endpoint: Endpoint, priority: int
    ) -> list[Answer | EngineError]:
        try:
            return await self._pool.client.ask_many(
                endpoint.url, self._pool.entry.name, [row.ask for row in batch], priority
            )
        except BatchRouteMissing:
            endpoint.batch_route = False
            return await self._singly(run, batch, endpoint, priority)

    async def _singly(
        self, run: Run, batch: list[Row], endpoint: Endpoint, priority: int
    ) -> list[Answer | EngineError]:
        if len(batch) == 1:
            return [await self._ask(run, batch[0], endpoint, priority)]
        asked = [asyncio.create_task(self._ask(run, row, endpoint, priority)) for row in batch]
        for row, task in zip(batch, asked, strict=True):
            run.asking[row.claimed.job_id] = Asking(task, (row.claimed.job_id,))
        found: list[Answer | EngineError] = []
        for row, answer in zip(batch, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(answer, asyncio.CancelledError) and row.claimed.job_id not in run.left:
                found.append(EngineFailed("cancelled meanwhile"))  # nobody hears of it: the job has its outcome
            elif isinstance(answer, BaseException) and not isinstance(answer, EngineError):
                raise answer
            else:
                found.append(answer)
        return found

    async def _ask(self, run: Run, row: Row, endpoint: Endpoint, priority: int) -> Answer:
        on_text = None
        if row.claimed.job_id in run.streamed:
            # A later claim has a higher fence, a later try of this run a higher number.
            order = run.claim.fence * TRIES_OF_A_RUN + min(row.times_sent, TRIES_OF_A_RUN - 1)
            on_text = self._streams.begin(row.claimed.job_id, order)
            row.times_sent += 1
        return await self._pool.client.ask(endpoint.url, self._pool.entry.name, row.ask, priority, on_text)

    async def _whole_failed(
        self, run: Run, batch: list[Row], endpoint: Endpoint, error: EngineError, stop: asyncio.Event
    ) -> tuple[EngineError | None, list[Row]]:
        if isinstance(error, EngineUnavailable):
            self._pool.mark_down(endpoint)
        if len(batch) > 1 and isinstance(error, RequestRejected):
            # All or nothing: one bad row fails its whole micro-batch. Halves find it in a few more requests.
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                wanted = self._worth_asking(run, half)
                if wanted and not stop.is_set():
                    await self._at(run, wanted, endpoint, stop)
            return None, []
        for row in batch:
            run.fail_try(row, error, endpoint)
        return error, batch

    def _judge(self, run: Run, row: Row, answer: Answer | EngineError, endpoint: Endpoint) -> None:
        """An answer is a result or a failed try."""
        try:
            if isinstance(answer, EngineError):
                raise answer
            run.succeed(row, kinds.read(row.job, row.ask, answer), answer, endpoint)
        except EngineError as error:
            if isinstance(error, EngineUnavailable | EngineOverloaded):
                self._pool.mark_down(endpoint)
            row.unread = isinstance(error, InvalidOutput)
            run.fail_try(row, error, endpoint)


__all__ = ["BULK_PRIORITY", "Scheduler"]
