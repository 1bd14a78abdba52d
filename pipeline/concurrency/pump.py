"""Read something that blocks, in a thread of its own, as fast as its reader takes it."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")
_AHEAD = 2


class Pump(Generic[T]):
    """Items of an iterable that blocks; a context manager. The thread ends with its process, also while it blocks.

    Args:
        make: makes the iterable, in the thread.
    """

    def __init__(self, make: Callable[[], Iterable[T]]) -> None:
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._items: queue.Queue[T] = queue.Queue(_AHEAD)
        self._changed = asyncio.Event()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="yyc3-pump", daemon=True)

    def __enter__(self) -> "Pump[T]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True

    async def next(self, seconds: float | None = None) -> T | None:
        """Return the next item, or None at the end.

        Raises:
            TimeoutError: there was none within these seconds.
            Exception: what the iterable raised, after its last item.
        """
        async with asyncio.timeout(seconds):
            while True:
                self._changed.clear()
                try:
                    return self._items.get_nowait()
                except queue.Empty:
                    if self._ended and self._items.empty():
                        if self._error is not None:
                            raise self._error from None
                        return None
                await self._changed.wait()

    def _run(self) -> None:
        try:
            for item in self._make():
                while not self._closed:
                    try:
                        self._items.put(item, timeout=1.0)
                        break
                    except queue.Full:
                        continue
                if self._closed:
                    return
                self._wake()
        except BaseException as error:  # noqa: BLE001 - raised where the items are taken
            self._error = error
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._changed.set)
        except RuntimeError:
            self._closed = True  # the loop of the reader is gone
