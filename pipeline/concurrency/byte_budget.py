"""How many bytes of callers' requests one process works on at once: pictures are large, and each is copied several times."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ByteBudget:
    """Bytes in use, of a process.

    Args:
        capacity: most bytes; a single larger piece of work has it alone.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def free(self) -> int:
        """Bytes that are not in use, and not waited for."""
        return 0 if self._waiting else max(0, self._capacity - self._used)

    @property
    def unused(self) -> bool:
        """Whether nothing is in use: then a piece that is larger than all of it may have it."""
        return self._used == 0

    def take(self, size: int) -> None:
        """Take bytes, whether they are free or not; `give_back` them."""
        self._used += size

    def give_back(self, size: int) -> None:
        """Give bytes back, to those that wait, in their order."""
        self._used -= size
        self._serve()

    async def acquire(self, size: int) -> None:
        """Wait until so much is free, and take it."""
        if not size or (not self._waiting and self._fits(size)):
            self._used += size
            return
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, ready)
        self._waiting.append(entry)
        try:
            await ready
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._serve()  # those behind it may fit
            else:
                self.give_back(size)
            raise

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold so much, as soon as it is free, while a block runs."""
        await self.acquire(size)
        try:
            yield
        finally:
            self.give_back(size)

    def _serve(self) -> None:
        """Give what is free to those that wait, in their order."""
        while self._waiting and self._fits(self._waiting[0][0]):
            needed, ready = self._waiting.popleft()
            self._used += needed
            if not ready.done():
                ready.set_result(None)

    def _fits(self, size: int) -> bool:
        return self._used == 0 or self._used + size <= self._capacity
