"""Store what runs have settled: at once for interactive chunks, twice a second for bulk."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from pipeline.broker import Notifier
from pipeline.concurrency.backoff import Backoff
from pipeline.concurrency.coalescer import Coalescer
from pipeline.jobs.notify import notify_callers
from pipeline.policies import retries
from pipeline.store import Database, settlement
from pipeline.store.settlement import ChunkState, SettledRow, Settlement
from pipeline.streams import StreamWriter
from schemas.doorbells import Lane
from schemas.errors import ErrorCode, StoreUnavailable, UnstorableValue
from schemas.results import JobState
from workers.execution.run import Run

_log = structlog.get_logger(__name__)
_BULK_WRITE_SECONDS = 0.5


class OutcomeWriter:
    """Writes the outcomes of all runs of a process; what is ready at the same time shares a statement.

    Args:
        database: where outcomes are stored.
        notifier: notifies waiting callers.
        streams: ends the streams of settled jobs.
        stop: set when the worker drains.
        on_stored: called with a model and the rows that were stored, or never will be.
    """

    def __init__(
        self,
        database: Database,
        notifier: Notifier,
        streams: StreamWriter,
        stop: asyncio.Event,
        on_stored: Callable[[str, Sequence[SettledRow]], None],
    ) -> None:
        self._database = database
        self._notifier = notifier
        self._streams = streams
        self._stop = stop
        self._on_stored = on_stored
        self._settle: Coalescer[Settlement, bool] = Coalescer(self._settle_many, largest=256)

    async def write_while_running(self, run: Run) -> None:
        """Write what is ready until the run has ended."""
        ended = asyncio.create_task(run.ended.wait())
        while not run.ended.is_set():
            await run.changed.wait()
            run.changed.clear()
            if run.claim.lane is Lane.BULK:
                await asyncio.wait({ended}, timeout=_BULK_WRITE_SECONDS)
            if run.unsettled and not run.ended.is_set() and (run.unwritten or run.failures):
                await self._write(run, last=False)
        await ended

    async def write_last(self, run: Run) -> None:
        """Write the rest of a run and the next state of its chunk; nothing if the run was lost."""
        if run.lost:
            self._on_stored(run.claim.model, run.unwritten)
        else:
            await self._write(run, last=True)

    async def _write(self, run: Run, *, last: bool) -> None:
        rows, failures = tuple(run.unwritten), tuple(run.failures)
        run.unwritten.clear()
        run.failures.clear()
        written = Settlement(run.claim.first_job_id, run.claim.fence, rows, failures)
        if last:
            written = self._with_next_state(run, written)
        held = await self._settle(written)
        self._on_stored(run.claim.model, rows)
        if not held:
            run.lost = True
            _log.warning("another worker has the chunk", chunk=run.claim.first_job_id, rows=len(rows))
            return
        self._streams.end(row.job_id for row in rows if row.job_id in run.streamed)
        await notify_callers(self._notifier, run.claim.reply_to, [row.job_id for row in rows])

    def _with_next_state(self, run: Run, written: Settlement) -> Settlement:
        if not run.unsettled:
            return replace(written, next_state=ChunkState.DONE)
        if self._stop.is_set() and run.last_code is None:
            return replace(written, next_state=ChunkState.QUEUED)
        delay = retries.delay(run.claim.rounds + 1)
        _log.info(
            "chunk is requeued for a retry", chunk=written.first_job_id, rows=len(run.unsettled), code=run.last_code
        )
        return replace(written, next_state=ChunkState.QUEUED, delay=delay, retry=True, code=run.last_code)

    async def _settle_many(self, settlements: list[Settlement]) -> Sequence[bool]:
        """Store settlements in one statement; while the database is unavailable they are kept and tried again."""
        backoff = Backoff(growing=False)
        while True:
            try:
                held = await settlement.settle(self._database, settlements)
                return [(one.first_job_id, one.fence) in held for one in settlements]
            except UnstorableValue as error:
                if len(settlements) > 1:
                    return [(await self._settle_many([one]))[0] for one in settlements]
                _log.error("results cannot be stored", chunk=settlements[0].first_job_id, reason=error.message)
                settlements = [_as_failures(settlements[0])]
            except StoreUnavailable as error:
                _log.warning("results wait for the database", reason=error.message, chunks=len(settlements))
                await backoff.wait()


def _as_failures(written: Settlement) -> Settlement:
    """Return the settlement with failures in place of results, so that the chunk is not retried without end."""
    message = "the engine's answer has a value that cannot be stored"
    rows = [
        replace(
            row, state=JobState.FAILED, answer=None, cache_key=None, code=ErrorCode.UNSTORABLE_VALUE, message=message
        )
        if row.state is JobState.SUCCEEDED
        else row
        for row in written.rows
    ]
    return replace(written, rows=rows)
