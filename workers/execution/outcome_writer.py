"""Store what runs have settled: at once for interactive chunks, twice a second for bulk."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum, auto

import structlog

from pipeline.broker import Notifier
from pipeline.concurrency.backoff import Backoff
from pipeline.concurrency.coalescer import Coalescer
from pipeline.jobs.notify import notify_callers
from pipeline.policies import retries
from pipeline.store import Database, settlement
from pipeline.store.settlement import ChunkState, Settled, SettledRow, Settlement
from pipeline.streams import StreamWriter
from schemas.doorbells import Lane
from schemas.errors import ErrorCode, StoreUnavailable, UnstorableValue
from schemas.results import JobState
from workers.execution.run import Run

_log = structlog.get_logger(__name__)
_BULK_WRITE_SECONDS = 0.5


class Hold(Enum):
    """What became of a settlement."""

    WRITTEN = auto()
    LOCKED = auto()  # another process has the chunk locked at this moment
    LOST = auto()  # another worker has the chunk


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
        self._settle: Coalescer[Settlement, Hold] = Coalescer(self._settle_many, largest=256)

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
        hold, backoff = await self._settle(written), Backoff(growing=False)
        while hold is Hold.LOCKED:
            _log.warning("results wait for a chunk that another process has locked", chunk=run.claim.first_job_id)
            await backoff.wait()
            hold = await self._settle(written)
        self._on_stored(run.claim.model, rows)
        if hold is Hold.LOST:
            run.lost = True
            _log.warning("another worker has the chunk", chunk=run.claim.first_job_id, rows=len(rows))
            return
        self._streams.end(row.job_id for row in rows if row.job_id in run.streamed)
        await notify_callers(self._notifier, run.claim.reply_to, [row.job_id for row in rows])

    def _with_next_state(self, run: Run, written: Settlement) -> Settlement:
        if not run.unsettled:
            return replace(written, next_state=ChunkState.DONE)
        if (self._stop.is_set() or run.given_back) and run.last_code is None:
            return replace(written, next_state=ChunkState.QUEUED)
        delay = retries.delay(run.claim.rounds + 1)
        _log.info(
            "chunk is requeued for a retry", chunk=written.first_job_id, rows=len(run.unsettled), code=run.last_code
        )
        return replace(written, next_state=ChunkState.QUEUED, delay=delay, retry=True, code=run.last_code)

    async def _settle_many(self, settlements: list[Settlement]) -> Sequence[Hold]:
        """Store settlements in one statement; while the database is unavailable they are kept and tried again."""
        backoff = Backoff(growing=False)
        while True:
            try:
                done = await settlement.settle(self._database, settlements)
                return [_hold(done, one) for one in settlements]
            except UnstorableValue as error:
                if len(settlements) > 1:
                    return [(await self._settle_many([one]))[0] for one in settlements]
                return [await self._without_bad_rows(settlements[0], error)]
            except StoreUnavailable as error:
                _log.warning("results wait for the database", reason=error.message, chunks=len(settlements))
                await backoff.wait()

    async def _without_bad_rows(self, written: Settlement, error: UnstorableValue) -> Hold:
        """Store what can be stored: the rows are halved until the one that Postgres refuses is alone; it fails."""
        rows = written.rows
        if len(rows) > 1 or (rows and written.failures):
            half = len(rows) // 2
            # The first part keeps the chunk running, so that the rest can follow.
            first = replace(
                written, rows=rows[:half], failures=(), next_state=ChunkState.RUNNING, code=None, retry=False
            )
            hold = (await self._settle_many([first]))[0] if half else Hold.WRITTEN
            rest = replace(written, rows=rows[half:]) if half else replace(written, failures=())
            return hold if hold is not Hold.WRITTEN else (await self._settle_many([rest]))[0]
        _log.error("a result cannot be stored", chunk=written.first_job_id, reason=error.message, rows=len(rows))
        return (
            await self._settle_many([replace(written, rows=[_as_failure(row) for row in rows], failures=(), code=None)])
        )[0]


def _hold(done: Settled, written: Settlement) -> Hold:
    key = (written.first_job_id, written.fence)
    return Hold.WRITTEN if key in done.written else Hold.LOCKED if key in done.locked else Hold.LOST


def _as_failure(row: SettledRow) -> SettledRow:
    """Return a failed outcome with nothing in it that came from outside, so that the job is not retried without end."""
    message = "the engine's answer has a value that cannot be stored"
    known = (row.job_id, row.replay, row.tenant, row.kind)
    return SettledRow(
        *known,
        JobState.FAILED,
        code=ErrorCode.UNSTORABLE_VALUE,
        message=message,
        attempts=row.attempts,
        model=row.model,
    )
