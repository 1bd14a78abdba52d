"""Items that arrive while a flush is in flight share the next one."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from pipeline.policies.chunking import split_by_weight

Item = TypeVar("Item")
Reply = TypeVar("Reply")


class Coalescer(Generic[Item, Reply]):
    """Gathers items of many callers into one call.

    A lone item is flushed at once; under load the flushes grow by themselves, without a timer. One
    flush at a time.

    Args:
        flush: gets the items in order and returns one reply an item; an exception that it raises
            reaches every caller of that flush, an exception among the replies its own caller.
        largest: most items of one flush.
        weight: of an item; a flush weighs at most `heaviest`, or has one item.
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
        """Add an item and wait for its reply. A caller that is cancelled leaves its item in the flush."""
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
            except Exception as error:  # noqa: BLE001 - it is raised to each caller, not swallowed
                replies = [error] * len(taken)
            for (_, future), reply in zip(taken, replies, strict=True):
                if future.done():
                    continue
                if isinstance(reply, BaseException):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

    def _size(self) -> int:
        """Return how many of the waiting items the next flush takes."""
        if self._weight is None:
            return self._largest
        return next(split_by_weight([self._weight(item) for item, _ in self._waiting[: self._largest]], self._heaviest))
