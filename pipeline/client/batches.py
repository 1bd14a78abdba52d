"""`client.batches`: batches of files or lines, from Python."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from pipeline.batches import FileSubmitter, ReadSoFar, life
from pipeline.batches.output import BatchOutput, error_line, output_line, refused_line
from pipeline.batches.reading import BatchFile, Line
from pipeline.concurrency.backoff import retry_while_unavailable
from pipeline.store import Database, batch_life, pauses
from pipeline.store.batch_output import Cursor
from schemas.batches import BatchSettings, BatchView
from schemas.errors import InvalidJob
from schemas.ids import BatchId
from schemas.ids import batch_id as as_batch_id
from schemas.job import DEFAULT_TENANT
from schemas.problems import all_problems

_Lines = list[dict[str, Any]]
_Views = list[BatchView]
_PAGE_LINES = 512
_SLOW_SECONDS = 0.5
_PROGRESS_SECONDS = 0.5
_MOST_BATCHES = 1_000


class LinesOfProgram:
    """Lines that a program has: objects, or JSON of them. Iterated in a thread of its own, once."""

    name = "lines"
    identity = None

    def __init__(self, lines: Iterable[dict[str, Any] | str | bytes]) -> None:
        self._lines = lines

    def pages(self) -> Iterator[list[Line]]:
        """Yield the lines, numbered from 1; those of a slow program one by one, so that they run."""
        left, most = enumerate(self._lines, start=1), 1
        while True:
            started = time.monotonic()
            page = [_line(number, given) for number, given in islice(left, most)]
            if not page:
                return
            yield page
            slow = time.monotonic() - started > _SLOW_SECONDS
            most = 1 if slow else min(2 * most, _PAGE_LINES)


def _line(number: int, given: Any) -> Line:
    if isinstance(given, bytes | str):
        try:
            return Line(number, given.strip().encode() if isinstance(given, str) else given.strip())
        except UnicodeEncodeError:
            return Line(number, b"", "has half a character (a lone surrogate), which is no text")
    try:
        return Line(number, orjson.dumps(given))
    except (TypeError, ValueError, RecursionError):
        return Line(number, b"", "cannot be written as JSON")


def settings_of(given: dict[str, Any]) -> BatchSettings:
    """Return the settings of a batch.

    Raises:
        InvalidJob: names the setting.
    """
    try:
        return BatchSettings.model_validate(given)
    except ValidationError as error:
        raise InvalidJob(f"batch refused: {all_problems(error)}") from None


class AsyncBatches:
    """Batches of one client.

    Args:
        open_parts: returns database and submitter of the open client.
    """

    def __init__(self, open_parts: "Callable[[], tuple[Database, FileSubmitter]]") -> None:
        self._open = open_parts

    async def create(
        self,
        source: str | PathLike[str] | Iterable[dict[str, Any] | str | bytes],
        /,
        *,
        tenant: str = DEFAULT_TENANT,
        key: str | None = None,
        encoding: str | None = None,
        on_progress: Callable[[ReadSoFar], None] = lambda _: None,
        **settings: Any,
    ) -> BatchView:
        """Submit a file, or lines in the form of one; returns when all of it is stored. Its first rows run meanwhile.

        With the same key, or the same unchanged file, it goes on where an earlier call stopped.

        Args:
            source: path of a file, or lines: objects, or JSON of them.
            tenant: of the batch.
            key: idempotency key; by default that of a file is made of its path, size and time.
            encoding: of the file, if it is not to be told by its content.
            on_progress: called after each part that was stored.
            **settings: see schemas.batches.BatchSettings: name, priority, weight, model, cache, usage_mode, sample, strict,
                window_seconds, not_before, tags.

        Raises:
            InvalidJob: a setting is wrong.
            InvalidBatchFile, DuplicateJob, BatchTakenOver, StoreUnavailable: see FileSubmitter.submit.
        """
        database, submitter = self._open()
        checked = settings_of(settings)
        if isinstance(source, str | PathLike):
            with BatchFile(Path(source), encoding, reread=checked.strict) as file:
                done = await submitter.submit(file, checked, tenant=tenant, key=key, on_progress=on_progress)
        else:
            if not isinstance(source, Iterable) or isinstance(source, bytes | Mapping):
                raise InvalidJob("source: give the path of a file, or a list of lines")
            lines = LinesOfProgram(source if not checked.strict else list(source))
            done = await submitter.submit(lines, checked, tenant=tenant, key=key, on_progress=on_progress)
        return await batch_life.view(database, done.batch_id)

    async def get(self, batch_id: BatchId) -> BatchView:
        """Return a batch as it is now.

        Raises:
            BatchNotFound: there is no such batch.
        """
        return await batch_life.view(self._open()[0], as_batch_id(batch_id))

    async def list(self, *, tenant: str | None = None, before: BatchId | None = None, limit: int = 20) -> _Views:
        """Return the newest batches, newest first; `before` is the last one of the page before."""
        if not isinstance(limit, int) or not 1 <= limit <= _MOST_BATCHES:
            raise InvalidJob(f"limit: must be a number from 1 to {_MOST_BATCHES:,}")
        if not isinstance(tenant, str | None):
            raise InvalidJob("tenant: must be text")
        before = None if before is None else as_batch_id(before)
        return await batch_life.newest(self._open()[0], tenant=tenant, before=before, limit=limit)

    async def pause(
        self, batch_id: BatchId, *, by_whom: str = "client", reason: str = "paused by a program"
    ) -> BatchView:
        """Let no more rows begin: within two seconds none is sent, those in flight end."""
        return await life.pause(self._open()[0], as_batch_id(batch_id), by_whom=by_whom, reason=reason)

    async def resume(self, batch_id: BatchId) -> BatchView:
        """Go on with a batch that is paused."""
        number = as_batch_id(batch_id)
        await pauses.resume(self._open()[0], number)
        return await self.get(number)

    async def cancel(self, batch_id: BatchId) -> BatchView:
        """Cancel the rows that have no outcome; requests in flight are aborted."""
        return await life.cancel(self._open()[0], as_batch_id(batch_id))

    async def retry(self, batch_id: BatchId) -> BatchView:
        """Run exactly the rows again that failed, expired or were cancelled."""
        number = as_batch_id(batch_id)
        await life.retry(self._open()[0], number)
        return await self.get(number)

    async def watch(self, batch_id: BatchId) -> AsyncIterator[BatchView]:
        """Yield a batch twice a second until it has ended."""
        number = as_batch_id(batch_id)
        while True:
            found = await retry_while_unavailable(lambda: self.get(number), "waiting for the database")
            yield found
            if found.status.is_final:
                return
            await asyncio.sleep(_PROGRESS_SECONDS)

    async def output(
        self, batch_id: BatchId, *, ordered: bool = False, wait: bool = True
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the lines of succeeded rows, as they are settled or in the order of the file.

        Args:
            batch_id: of the batch.
            ordered: whether to follow the file; a row that is not settled is waited for.
            wait: until the batch has ended; otherwise what is settled now is all.
        """
        async for rows in self._rows(as_batch_id(batch_id), ordered=ordered, wait=wait):
            for row in rows:
                if row.state == "succeeded":
                    yield orjson.loads(output_line(row))

    async def errors(self, batch_id: BatchId, *, wait: bool = True) -> AsyncIterator[dict[str, Any]]:
        """Yield the lines of rows that did not succeed, and of lines that are no jobs."""
        number = as_batch_id(batch_id)
        async for rows in self._rows(number, ordered=False, wait=wait):
            for row in rows:
                if row.state != "succeeded":
                    yield orjson.loads(error_line(row))
        async for refused in BatchOutput(self._open()[0], number).refused():
            for line in refused:
                yield orjson.loads(refused_line(line))

    async def output_since(self, batch_id: BatchId, cursor: str | None = None) -> tuple[_Lines, str]:
        """Return what was settled since a cursor, succeeded or not, and the cursor for the next call."""
        number, at = as_batch_id(batch_id), Cursor() if cursor is None else Cursor.parse(cursor)
        await self.get(number)
        output = BatchOutput(self._open()[0], number)
        found: _Lines = []
        async for rows, after in output.settled(at, wait=False):
            at = after
            found += [orjson.loads(output_line(row) if row.state == "succeeded" else error_line(row)) for row in rows]
        return found, str(at)

    async def _rows(self, batch_id: BatchId, *, ordered: bool, wait: bool) -> AsyncIterator[Any]:
        await self.get(batch_id)
        output = BatchOutput(self._open()[0], batch_id)
        if ordered:
            async for rows in output.ordered(wait=wait):
                yield rows
        else:
            async for rows, _ in output.settled(Cursor(), wait=wait):
                yield rows
