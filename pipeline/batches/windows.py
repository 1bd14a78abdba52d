"""Cut the lines of a batch file into windows of rows that are stored together."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from hashlib import blake2b

import orjson

from pipeline.batches.lines import RefusedLine, is_within, parse_line, shared_fields
from pipeline.batches.reading import Line
from pipeline.concurrency.pump import Pump
from pipeline.jobs.preparation import Preparer
from pipeline.store.batch_input import BatchInput, InputRow, InputWindow
from pipeline.store.new_rows import RefusedRow
from schemas.batches import BatchSettings
from schemas.errors import DuplicateJob, ErrorCode, InvalidBatchFile, InvalidJob, UnknownModel

_FIRST_WINDOWS = (500, 2_000)  # so that an engine has work at once
_WINDOW_ROWS = 8_000
_WINDOW_BYTES = 5 * 1024 * 1024
_WINDOW_SECONDS = 2.0  # lines of a slow program run meanwhile
_WAIT_FOR_LINES_SECONDS = 1.0
_YIELD_LINES = 200
# What does not make other jobs of the same lines.
_ABOUT_THE_BATCH = {"name", "weight", "window_seconds", "not_before", "strict", "tags", "canary_limit"}


def hash_of(settings: BatchSettings) -> "blake2b":
    """Return a hash over what makes other jobs of the same lines, to which they are added."""
    fields = settings.model_dump(mode="json", exclude=_ABOUT_THE_BATCH)
    return blake2b(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS), digest_size=16)


@dataclass(slots=True)
class _Window:
    """Lines that are stored together, while they are read."""

    after: int
    rows: list[InputRow] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    size: int = 0
    begun: float = field(default_factory=time.monotonic)

    def closed(self, upto: int, digest: bytes) -> InputWindow:
        """Return what is stored."""
        return InputWindow(self.after, upto, digest, self.rows, self.refused)


class _Prefix:
    """The lines of a file that are stored already: they must be the same ones."""

    def __init__(self, batch: BatchInput, digest: "blake2b") -> None:
        self._batch = batch
        self._digest = digest
        self._checked = False

    @property
    def digest(self) -> bytes:
        """Over all lines so far."""
        return self._digest.digest()

    def is_new(self, line: Line) -> bool:
        """Whether a line is not stored yet."""
        new = line.number > self._batch.lines
        if new and not self._checked:
            self.end()
        if new and self._batch.complete:
            raise self._other_file()
        self._digest.update(line.text + b"\n")
        return new

    def end(self) -> None:
        """Compare the lines that are stored.

        Raises:
            DuplicateJob: they are others.
        """
        if not self._checked and self.digest != self._batch.digest:
            raise self._other_file()
        self._checked = True

    def _other_file(self) -> DuplicateJob:
        number = self._batch.batch_id
        return DuplicateJob(
            f"key: already used for batch {number}, which was made of another file or with other options; use a new key",
            batch_id=number,
        )


class WindowReader:
    """Reads the lines of one file once.

    Args:
        preparer: checks jobs.
        settings: of the batch.
        tenant: of the batch.
        batch: says which lines are stored already.
        key: names the batch in messages.
    """

    def __init__(
        self, preparer: Preparer, settings: BatchSettings, tenant: str, batch: BatchInput, key: str | None
    ) -> None:
        self._preparer = preparer
        self._settings = settings
        self._tenant = tenant
        self._batch = batch
        self._key = key
        self._shared = shared_fields(settings)
        self._windows = 0

    async def read(self, first: list[Line], pages: Pump[list[Line]]) -> AsyncIterator[InputWindow]:
        """Yield windows of lines that are not stored yet, after a check that those before are the same.

        Raises:
            DuplicateJob: they are not.
            InvalidBatchFile: the file ends too early, or cannot be read any further.
        """
        prefix = _Prefix(self._batch, hash_of(self._settings))
        window = _Window(self._batch.lines)
        seen, problem = 0, None
        try:
            async for line in self._lines(first, pages):
                if line is not None:
                    seen = line.number
                    if not prefix.is_new(line):
                        continue
                    await self._add(window, line)
                if self._is_full(window) or (line is None and seen > window.after):
                    yield self._close(window, seen, prefix)
                    window = _Window(seen)
        except InvalidBatchFile as error:
            problem = error
        if problem is None:
            prefix.end()
        if seen > window.after and not self._batch.complete:
            yield self._close(window, seen, prefix)
        if problem is not None:
            raise self._cut_short(problem, max(seen, self._batch.lines))

    def _close(self, window: _Window, upto: int, prefix: _Prefix) -> InputWindow:
        self._windows += 1
        return window.closed(upto, prefix.digest)

    async def _lines(self, first: list[Line], pages: Pump[list[Line]]) -> AsyncIterator[Line | None]:
        """Yield lines; None if nothing came for a while: what is there may run."""
        page: list[Line] | None = first
        while page is not None:
            for index, line in enumerate(page):
                yield line
                if index % _YIELD_LINES == _YIELD_LINES - 1:
                    await asyncio.sleep(0)  # let others of this loop run
            try:
                page = await pages.next(_WAIT_FOR_LINES_SECONDS)
            except TimeoutError:
                page = []
                yield None

    def _cut_short(self, problem: InvalidBatchFile, lines: int) -> InvalidBatchFile:
        number = self._batch.batch_id
        again = f"; when the file is whole, submit it with --key {self._key} to go on" if self._key else ""
        return InvalidBatchFile(
            f"{problem.message}; batch {number} has what was read, {lines:,} lines, and they run{again}",
            batch_id=number,
        )

    def _is_full(self, window: _Window) -> bool:
        most = _FIRST_WINDOWS[self._windows] if self._windows < len(_FIRST_WINDOWS) else _WINDOW_ROWS
        rows = len(window.rows) + len(window.refused)
        return (
            rows >= most
            or window.size >= _WINDOW_BYTES
            or (rows > 0 and time.monotonic() - window.begun > _WINDOW_SECONDS)
        )

    async def _add(self, window: _Window, line: Line) -> None:
        if self._settings.sample is not None and not is_within(line, self._settings.sample):
            return
        custom_id = None
        try:
            custom_id, body, given = parse_line(line, self._settings)
            job = None if given is not None else self._preparer.plain_completion(body, self._tenant, self._shared)
            if job is None:
                given = given or {"kind": "completion", "body": body, **self._shared}
                job = await self._preparer.prepare(given, self._tenant, with_hash=False)
        except RefusedLine as error:
            window.refused.append(RefusedRow(line.number, error.custom_id, ErrorCode.INVALID_JOB, error.reason))
        except (InvalidJob, UnknownModel) as error:
            reason = error.message.removeprefix("job refused: ")
            window.refused.append(RefusedRow(line.number, custom_id, error.code, reason))
        else:
            held = self._settings.canary is not None and not is_within(line, self._settings.canary)
            window.rows.append(InputRow(line.number, custom_id, job, held))
            window.size += len(job.request)
