"""How things that happen at the same time share one trip, and how large the pieces are. Pure rules and one small queue."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

from pipeline.kinds.asking import Ask

Item = TypeVar("Item")
Reply = TypeVar("Reply")

_CHUNK_SECONDS = 3.0
_FIRST_CHUNK_ROWS = 256
_SMALLEST_CHUNK_ROWS = 32
LARGEST_CHUNK_ROWS = 1_024
INTERACTIVE_CHUNK_ROWS = 64
LARGEST_CHUNK_BYTES = 32 * 1024 * 1024
"""Requests that are claimed together are in a worker's memory together; pictures are large."""


def chunk_rows(jobs: int, rows_per_second: float | None) -> int:
    """Rows of a bulk chunk: about 3 s of what one chunk moved lately, so that a small batch never waits long behind one.

    Without a measurement, 256. A batch smaller than four chunks is cut in four, for the last chunk ends alone.
    """
    by_time = _FIRST_CHUNK_ROWS if rows_per_second is None else int(rows_per_second * _CHUNK_SECONDS)
    by_share = -(-jobs // 4)
    return max(_SMALLEST_CHUNK_ROWS, min(by_time, by_share, LARGEST_CHUNK_ROWS))


def micro_batches(asks: Sequence[tuple[int, Ask]], rows: int) -> list[list[int]]:
    """Indexes of asks that go in one engine request: equal in shape, at most `rows`, neighbours stay neighbours.

    Streamed asks go alone: a micro-batch answers only when its slowest row ends.
    """
    groups: dict[str, list[int]] = {}
    alone: list[list[int]] = []
    for index, ask in asks:
        if ask.shape.streamed:
            alone.append([index])
        else:
            groups.setdefault(ask.shape.key, []).append(index)
    cut = [group[k : k + rows] for group in groups.values() for k in range(0, len(group), rows)]
    return alone + cut


class Coalescer(Generic[Item, Reply]):
    """Items that arrive while a flush is under way share the next one.

    A lone item goes at once; under load the batches grow by themselves, without a timer. One flush at a time.

    Args:
        flush: gets the items in order, returns one reply an item; an exception reaches every caller of that flush, an
            exception among the replies its own caller.
        largest: most items of one flush.
        weight: of an item; a flush is at most as heavy as `heaviest`, or holds one item.
    """

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Reply | BaseException]]],
        *,
        largest: int = 1_000,
        weight: Callable[[Item], int] | None = None,
        heaviest: int = 0,
    ) -> None:
        self._flush = flush
        self._largest = largest
        self._weight = weight
        self._heaviest = heaviest
        self._waiting: list[tuple[Item, asyncio.Future[Reply]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Reply:
        """Hand in an item and wait for its reply. A caller that is cancelled leaves its item in the flush."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            # Let callers that are ready in this turn of the loop join.
            await asyncio.sleep(0)
            size = self._size()
            taken, self._waiting = self._waiting[:size], self._waiting[size:]
            try:
                replies: Sequence[Reply | BaseException] = await self._flush([item for item, _ in taken])
            except Exception as error:  # noqa: BLE001 - it is handed to each caller, not swallowed
                replies = [error] * len(taken)
            for (_, future), reply in zip(taken, replies, strict=True):
                if future.done():
                    continue
                if isinstance(reply, BaseException):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

    def _size(self) -> int:
        """How many of those that wait go now."""
        if self._weight is None:
            return self._largest
        return next(light_runs([self._weight(item) for item, _ in self._waiting[: self._largest]], self._heaviest))


def light_runs(weights: Sequence[int], heaviest: int) -> Iterator[int]:
    """Lengths of runs of neighbours, each as long as it may be and at most so heavy, or a single one."""
    length = total = 0
    for weight in weights:
        if length and total + weight > heaviest:
            yield length
            length = total = 0
        length += 1
        total += weight
    if length:
        yield length


__all__ = [
    "INTERACTIVE_CHUNK_ROWS",
    "LARGEST_CHUNK_BYTES",
    "LARGEST_CHUNK_ROWS",
    "Coalescer",
    "chunk_rows",
    "light_runs",
    "micro_batches",
]
