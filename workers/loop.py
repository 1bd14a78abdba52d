"""An asyncio loop in a thread of its own, while Celery has the main thread."""

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import structlog

from pipeline.observability.logging import fault

_log = structlog.get_logger(__name__)
T = TypeVar("T")


class LoopThread:
    """Runs `serve` until it is closed.

    Args:
        serve: opens what it needs, calls what it is given when that is ready, and goes on until it is cancelled. If it ends by
            itself the process gets SIGTERM: better to stop, and be started again.
    """

    def __init__(
        self,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
        serve: Callable[[Callable[[], None]], Awaitable[None]],
    ) -> None:
        self._loop_factory = loop_factory
        self._serve = serve
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="asyncio", daemon=True)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, once it was started."""
        assert self._loop is not None
        return self._loop

    def start(self) -> None:
        """Start the loop and wait until it is ready."""
        self._thread.start()
        self._ready.wait()
        if self._problem is not None:
            raise self._problem

    def run(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run something on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self) -> None:
        """End the loop after Celery is done."""
        assert self._end is not None
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(timeout=10)

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                runner.run(self._live())
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self._problem = error
        finally:
            self._ready.set()

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        serving, end = asyncio.ensure_future(self._serve(self._ready.set)), asyncio.create_task(self._end.wait())
        await asyncio.wait({serving, end}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done() and not end.done():
            if not self._ready.is_set():
                end.cancel()
                serving.result()  # it could not even begin: the main thread says why
            problem = serving.exception()
            _log.error("the loop has nothing to do any more; stopping", fault=fault(problem) if problem else None)
            os.kill(os.getpid(), signal.SIGTERM)
            await end
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def prefer_latency() -> None:
    """Two interpreter settings that the interactive benchmark showed to matter.

    The hub and the asyncio loop hand work to each other: with the default of 5 ms one waits that long for the other. What
    is imported lives for ever, so the garbage collector need not walk it.
    """
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


__all__ = ["LoopThread", "prefer_latency"]
