"""Submit a batch file: read as a stream, its rows stored window after window, its first rows run while the rest is read."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID, uuid4

from pipeline.batches.reading import Line
from pipeline.batches.source import LineSource, key_of
from pipeline.batches.submit import check_names, open_doorbells, rows_of_chunk
from pipeline.batches.windows import WindowReader, hash_of
from pipeline.broker import Publisher
from pipeline.concurrency.backoff import Backoff, retry_while_unavailable
from pipeline.concurrency.pump import Pump
from pipeline.jobs.admission import QueueLimits
from pipeline.jobs.preparation import Preparer
from pipeline.jobs.submit import publish_doorbells
from pipeline.store import Database, batch_input, custom_ids
from pipeline.store.batch_input import BatchInput, InputWindow, NewInput
from pipeline.store.ids import JobIds
from pipeline.store.new_rows import NewChunk, RefusedRow
from schemas.batches import BatchSettings
from schemas.errors import (
    BatchTakenOver,
    ErrorCode,
    InvalidBatchFile,
    QueueSaturated,
    StoreUnavailable,
)

_MOST_PROBLEMS = 1_000
_LONGEST_WAIT_SECONDS = 5.0
_SAME_ID = "custom_id: line {:,} has the same one"


@dataclass(frozen=True, slots=True)
class ReadSoFar:
    """How far a file was read. `waiting` says why nothing is read at this moment."""

    batch_id: int | None
    lines: int
    jobs: int
    refused: int
    waiting: str | None = None


@dataclass(frozen=True)
class FileSubmitter:
    """Submits batch files; see BatchSubmitter for the arguments."""

    database: Database
    publisher: Publisher
    preparer: Preparer
    ids: JobIds
    limits: QueueLimits

    async def submit(
        self,
        source: LineSource,
        settings: BatchSettings,
        *,
        tenant: str,
        key: str | None = None,
        on_progress: Callable[[ReadSoFar], None] = lambda _: None,
    ) -> BatchInput:
        """Read a file to its end and store its rows; the first ones run meanwhile.

        The same key goes on where an earlier call stopped, and returns the same batch if the file was read whole.

        Raises:
            InvalidBatchFile: it cannot be read to its end; rows that were read before run. With `strict`: a line is no
                job, nothing runs.
            DuplicateJob: the key was used for another file.
            BatchTakenOver: another process reads it meanwhile, or the batch was cancelled.
            StoreUnavailable: nothing is known to be stored.
        """
        check_names(settings.name, "" if tenant is None else tenant, key)
        return await _Submission(self, source, settings, tenant, key, on_progress).run()


class _Submission:
    """One file on its way into the store."""

    def __init__(
        self,
        submitter: FileSubmitter,
        source: LineSource,
        settings: BatchSettings,
        tenant: str,
        key: str | None,
        on_progress: Callable[[ReadSoFar], None],
    ) -> None:
        self._by = submitter
        self._database = submitter.database
        self._source = source
        self._settings = settings
        self._tenant = tenant
        self._key = key if key is not None else key_of(source, tenant, hash_of(settings).digest())
        self._derived = key is None
        self._tell = on_progress
        self._submitter: UUID = uuid4()
        self._batch: BatchInput
        self._taken_over = False
        self._jobs = self._refused = 0

    async def run(self) -> BatchInput:
        """Submit it; see FileSubmitter.submit."""
        with Pump(self._source.pages) as pages:
            first = await pages.next()
            if first is None:
                raise InvalidBatchFile(f"{self._source.name} has no lines")
            self._batch = batch = await batch_input.begin(self._database, self._new_input(), self._submitter)
            self._jobs, self._refused = batch.jobs, batch.refused
            if batch.complete and self._derived:
                return batch  # its name, size and time of change say that it is the same file
            if not batch.complete:
                self._check_open(batch)
            self._show(batch.lines)
            if self._settings.strict and not batch.complete and not batch.lines:
                await self._validate(first, pages)
            else:
                await self._store_all(first, pages)
                return self._batch
        with Pump(self._source.pages) as pages:
            await self._store_all(await pages.next() or [], pages)
        return self._batch

    def _new_input(self) -> NewInput:
        settings = self._settings
        window = settings.window_seconds
        return NewInput(
            tenant=self._tenant,
            key=self._key,
            name=settings.name,
            weight=settings.weight,
            options=settings.model_dump_json().encode(),
            digest=hash_of(settings).digest(),
            window=None if window is None else timedelta(seconds=window),
            not_before=settings.not_before,
            canary_limit=None if settings.canary is None else settings.canary_limit,
        )

    def _check_open(self, batch: BatchInput) -> None:
        number = batch.batch_id
        if batch.cancelled:
            raise BatchTakenOver(f"batch {number} was cancelled; the rest of its file is not read", batch_id=number)
        if batch.expired:
            raise BatchTakenOver(f"batch {number} has expired; the rest of its file is not read", batch_id=number)

    def _show(self, lines: int, waiting: str | None = None) -> None:
        self._tell(ReadSoFar(self._batch.batch_id, lines, self._jobs, self._refused, waiting))

    def _reader(self) -> WindowReader:
        return WindowReader(self._by.preparer, self._settings, self._tenant, self._batch, self._key)

    async def _take_over(self) -> None:
        """Go on with the batch: its lines are known to be those of this file. Who read it before stops."""
        if not self._taken_over:
            await batch_input.take_over(self._database, self._batch, self._submitter)
            await custom_ids.prepare(self._database, self._batch.batch_id, self._batch.lines)
            self._taken_over = True

    async def _validate(self, first: list[Line], pages: Pump[list[Line]]) -> None:
        """Check every line before anything runs."""
        problems: list[RefusedRow] = []
        async for window in self._reader().read(first, pages):
            await self._take_over()
            problems += (await self._without_repeated(window, stored=False)).refused
            self._show(window.upto)
            if len(problems) >= _MOST_PROBLEMS:
                break
        if not problems:
            return
        problems = problems[:_MOST_PROBLEMS]
        await batch_input.refuse(self._database, self._batch.batch_id, self._tenant, problems, self._submitter)
        number = self._batch.batch_id
        raise InvalidBatchFile(
            f"{self._source.name} was refused, nothing runs: {len(problems):,} lines are no jobs, such as line "
            f"{problems[0].line:,}: {problems[0].message}; all are in: yyc3 batches output {number} --errors FILE",
            batch_id=number,
        )

    async def _store_all(self, first: list[Line], pages: Pump[list[Line]]) -> None:
        """Store all lines that are not stored yet: a window is stored while the next one is read."""
        batch = self._batch
        storing: asyncio.Task[None] | None = None
        upto = batch.lines
        try:
            async for window in self._reader().read(first, pages):
                await self._take_over()
                if storing is not None:
                    await storing
                upto = window.upto
                storing = asyncio.create_task(self._store(window))
        except asyncio.CancelledError:
            if storing is not None:
                storing.cancel()  # it may wait for the database without end
            raise
        finally:
            if storing is not None:
                await storing
        if not batch.complete:
            await self._take_over()
            await retry_while_unavailable(
                lambda: batch_input.complete(self._database, batch.batch_id, upto, self._submitter),
                "the end of the file is stored later",
            )
        self._batch = await batch_input.state(self._database, batch.batch_id, None)

    async def _without_repeated(self, window: InputWindow, *, stored: bool = True) -> InputWindow:
        """Refuse rows whose custom id an earlier line has."""
        ids = [(row.custom_id, row.line) for row in window.rows]
        earlier = await custom_ids.earlier_lines(self._database, self._batch.batch_id, ids, stored=stored)
        if not earlier:
            return window
        repeated = [
            RefusedRow(row.line, row.custom_id, ErrorCode.DUPLICATE_JOB, _SAME_ID.format(earlier[row.line]))
            for row in window.rows
            if row.line in earlier
        ]
        refused = sorted([*window.refused, *repeated], key=lambda row: row.line)
        return replace(window, rows=[row for row in window.rows if row.line not in earlier], refused=refused)

    async def _store(self, window: InputWindow) -> None:
        """Store a window and publish its doorbells; what is unavailable, or full, is waited for."""
        backoff = Backoff(growing=False)
        while True:
            try:
                if not self._settings.strict:
                    window = await self._without_repeated(window)
                chunks = await self._store_within_limits(window)
                break
            except QueueSaturated as error:
                self._show(window.after, error.message)
                await asyncio.sleep(min(error.facts.get("retry_after_seconds", 1.0), _LONGEST_WAIT_SECONDS))
                with suppress(StoreUnavailable):  # then the next attempt says so
                    await batch_input.wait(self._database, self._batch.batch_id, self._submitter)
                    await self._is_stored(window)
            except StoreUnavailable as error:
                self._show(window.after, error.message)
                await backoff.wait()
                with suppress(StoreUnavailable):
                    if await self._is_stored(window):
                        chunks = []  # its commit was not answered; recovery publishes its doorbells
                        break
            except BatchTakenOver:
                if await self._is_stored(window):
                    chunks = []
                    break
                raise
        self._jobs += len(window.rows)
        self._refused += len(window.refused)
        self._show(window.upto)
        await publish_doorbells(self._by.publisher, open_doorbells(chunks))

    async def _is_stored(self, window: InputWindow) -> bool:
        """Whether a window is in the store after all.

        Raises:
            BatchTakenOver: the batch has ended, or another process reads its file.
        """
        self._check_open(await batch_input.state(self._database, self._batch.batch_id, None))
        known = await batch_input.state(self._database, self._batch.batch_id, self._submitter)
        return known.lines >= window.upto

    async def _store_within_limits(self, window: InputWindow) -> list[NewChunk]:
        jobs_of = Counter(row.job.model for row in window.rows)
        rows = await rows_of_chunk(self._database, self._by.preparer, jobs_of) if jobs_of else 1
        await self._by.limits.refresh()
        with self._by.limits.reserve_batch(jobs_of, self._tenant) as admit:
            admit()
            return await batch_input.add_window(
                self._database, self._by.ids, self._batch, self._tenant, window, rows, self._submitter
            )
