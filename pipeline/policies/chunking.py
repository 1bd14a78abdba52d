"""How things that happen at the same time share one trip, and how large the pieces are. Pure rules and one small queue."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")
Reply = TypeVar("Reply")

_CHUNK_SECONDS = 3.0
_FIRST_CHUNK_ROWS = 256
_SMALLEST_CHUNK_ROWS = 32
LARGEST_CHUNK_ROWS = 1_024
"""A block of ids, see store/ids.py: the rows of a chunk have consecutive ones."""

INTERACTIVE_CHUNK_ROWS = 64
LARGEST_REQUEST_TOKENS = 16_384
"""Prompt tokens of one request of several rows: it is answered when its slowest row is."""

LONGEST_WAIT_SECONDS = 0.05
LARGEST_CHUNK_BYTES = 32 * 1024 * 1024
"""Requests that are claimed together are in a worker's memory together; pictures are large."""


def chunk_rows(jobs: int, rows_per_second: float | None) -> int:
    """Rows of a bulk chunk: about 3 s of what one chunk moved lately, so that a small batch never waits long behind one.

    Without a measurement, 256. A batch smaller than four chunks is cut in four, for the last chunk ends alone.
    """
    by_time = _FIRST_CHUNK_ROWS if rows_per_second is None else int(rows_per_second * _CHUNK_SECONDS)
    by_share = -(-jobs // 4)
    return max(_SMALLEST_CHUNK_ROWS, min(by_time, by_share, LARGEST_CHUNK_ROWS))


def rows_now(waiting: int, room: int, most: int, waited_seconds: float, *, idle: bool) -> int:
    """How many rows of one kind go in the next request; 0 where it is better to wait for more room.

    Where the endpoint is idle nothing waits. Elsewhere a request waits for room for all it could hold, but not for long:
    room that falls free in small pieces would otherwise cut the requests into as small ones.

    Args:
        waiting: rows that may share a request.
        room: rows that the endpoint may be given now.
        most: rows that it takes in one request.
        waited_seconds: how long the room has been too small.
        idle: whether the endpoint has nothing of ours to do.
    """
    wanted = min(waiting, most)
    if room >= wanted or idle or waited_seconds >= LONGEST_WAIT_SECONDS:
        return max(0, min(room, wanted))
    return 0


class Waiting(Protocol):
    """A row in a line.

    Attributes:
        group: rows of equal groups may share a request.
        urgency: lower goes first; equal ones in the order they came.
        place: set by the line when the row first comes; it keeps it when it comes back.
        tokens: of its prompt, estimated.
    """

    group: Hashable
    urgency: int
    place: int
    tokens: int


Row = TypeVar("Row", bound=Waiting)


class Line(Generic[Row]):
    """Rows that wait for room at an engine. They are put together to requests when there is room, not before."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, deque[Row]] = {}
        self._heads: list[tuple[int, int, int, Hashable]] = []
        self._places = self._entries = 0

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, row: Row) -> None:
        """At the end; a row that was here before goes back to its place."""
        again = row.place > 0
        if not again:
            self._places += 1
            row.place = self._places
        group = self._groups.get(row.group)
        if group is None:
            self._groups[row.group] = deque((row,))
        elif again:
            group.appendleft(row)
        else:
            group.append(row)
            return
        self._push(row)

    def head(self) -> tuple[Row, int] | None:
        """The row that is next, and how many may go with it."""
        while self._heads:
            urgency, place, _, key = self._heads[0]
            group = self._groups.get(key)
            if group and (group[0].urgency, group[0].place) == (urgency, place):
                return group[0], len(group)
            heappop(self._heads)  # what was pushed for a head that has gone
        return None

    def take(self, rows: int) -> list[Row]:
        """So many of the next group, or fewer where their prompts are long, but one at least."""
        found = self.head()
        if found is None:
            return []
        group = self._groups[found[0].group]
        taken = [group.popleft()]
        tokens = taken[0].tokens
        while group and len(taken) < rows and tokens + group[0].tokens <= LARGEST_REQUEST_TOKENS:
            tokens += group[0].tokens
            taken.append(group.popleft())
        if group:
            self._push(group[0])
        else:
            del self._groups[taken[0].group]
        return taken

    def empty(self) -> list[Row]:
        """All rows; nobody waits any more."""
        rows = [row for group in self._groups.values() for row in group]
        self._groups.clear()
        self._heads.clear()
        return rows

    def _push(self, row: Row) -> None:
        self._entries += 1
        heappush(self._heads, (row.urgency, row.place, self._entries, row.group))


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
    "LARGEST_REQUEST_TOKENS",
    "LONGEST_WAIT_SECONDS",
    "Coalescer",
    "Line",
    "chunk_rows",
    "light_runs",
    "rows_now",
]
