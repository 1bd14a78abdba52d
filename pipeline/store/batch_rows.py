"""The jobs of a batch on their way into the store: their requests in a temporary file, what chunks need in memory."""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from tempfile import SpooledTemporaryFile, gettempdir
from types import TracebackType
from typing import Self

from pipeline.files import DISK_IS_FULL
from pipeline.store.new_rows import NewJob, cut
from schemas.errors import UnwritableFile

WINDOW_ROWS = 50_000
"""Jobs of a batch among which those of one model and priority are gathered into chunks."""

_IN_MEMORY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Gathered:
    """The jobs of one chunk, by their positions in the batch; `window` counts from 1."""

    positions: "array[int]"
    model: str
    priority: int
    deadline: datetime | None
    bytes: int
    window: int


class BatchRows:
    """Prepared jobs in their order: some tens of bytes a job in memory, and at most 16 MiB of requests.

    So that a mix of models and priorities makes as few chunks as a sorted batch, jobs are gathered over a window. Within it
    the ids do not follow the positions; the windows follow each other, so a reader needs one window to put it in order.

    Attributes:
        jobs_of: how many jobs each model has.
        chunks: of the windows that are closed.
    """

    def __init__(self) -> None:
        self.jobs_of: Counter[str] = Counter()
        self.chunks: list[Gathered] = []
        self._requests = SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115 - closed by __exit__
        self._kinds: list[str] = []
        self._streamed = bytearray()
        self._deadlines: list[datetime | None] = []
        self._sizes = array("L")
        self._window: dict[tuple[str, int], array[int]] = {}
        self._window_rows = self._windows = 0
        self._hash = sha256()

    def __len__(self) -> int:
        return len(self._kinds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._requests.close()

    @property
    def payload_hash(self) -> bytes:
        """A hash over all jobs, in 16 bytes."""
        return self._hash.digest()[:16]

    @property
    def has_full_window(self) -> bool:
        """Whether the next job begins another window: call `close_window` first."""
        return self._window_rows == WINDOW_ROWS

    def add(self, job: NewJob) -> None:
        """Add the next job.

        Raises:
            UnwritableFile: there is no room for temporary files.
        """
        try:
            self._requests.write(job.request)
        except OSError as error:
            if error.errno not in DISK_IS_FULL:
                raise
            raise UnwritableFile(
                f"the jobs of a batch do not fit into {gettempdir()}: make room there, or set TMPDIR to another folder"
            ) from error
        self._window.setdefault((job.model, job.priority), array("L")).append(len(self))
        self._window_rows += 1
        self._kinds.append(job.kind)
        self._streamed.append(job.streamed)
        self._deadlines.append(job.deadline)
        self._sizes.append(len(job.request))
        self._hash.update(job.payload_hash)
        self.jobs_of[job.model] += 1

    def close_window(self, chunk_rows: int) -> None:
        """Gather the jobs of the open window into chunks of at most this many rows."""
        for (model, priority), positions in self._window.items():
            begin = 0
            for length in cut([self._sizes[position] for position in positions], chunk_rows):
                own = positions[begin : begin + length]
                begin += length
                deadlines = (found for position in own if (found := self._deadlines[position]) is not None)
                size = sum(self._sizes[position] for position in own)
                self.chunks.append(
                    Gathered(own, model, priority, min(deadlines, default=None), size, self._windows + 1)
                )
        self._window, self._window_rows = {}, 0
        self._windows += 1

    def rows(self) -> Iterator[tuple[str, datetime | None, bool, bytes]]:
        """Yield kind, deadline, whether it is streamed, and request of each job."""
        self._requests.seek(0)
        for kind, deadline, streamed, size in zip(
            self._kinds, self._deadlines, self._streamed, self._sizes, strict=True
        ):
            yield kind, deadline, bool(streamed), self._requests.read(size)
