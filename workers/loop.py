"""An asyncio loop in a thread of its own; Celery has the main thread."""

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import structlog

from pipeline.observability.logging import safe_error_summary

_log = structlog.get_logger(__name__)
T = TypeVar("T")
ServedT = TypeVar("ServedT")


class LoopThread(Generic[ServedT]):
    """Runs `serve` until it is closed.

    Args:
        loop_factory: makes the loop.
        serve: opens what it needs, passes what it serves to the function that it is given, and runs
            until it is cancelled. If it ends by itself the process gets SIGTERM: it is better to stop
            and be started again.
    """

    def __init__(
        self,
        loop_factory: Callable[[], asyncio.AbstractEventLoop],
        serve: Callable[[Callable[[ServedT], None]], Awaitable[None]],
    ) -> None:
        self._loop_factory = loop_factory
        self._serve = serve
        self._started: Future[ServedT] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, name="asyncio", daemon=True)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, after the start."""
        assert self._loop is not None
        return self._loop

    def start(self) -> ServedT:
        """Start the loop; returns what it serves when that is ready, raises what prevented it."""
        self._thread.start()
        return self._started.result()

    def run(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self) -> None:
        """End the loop after Celery has ended."""
        assert self._end is not None
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(timeout=10)

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                runner.run(self._live())
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            if not self._started.done():
                self._started.set_exception(error)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        serving, end = (
            asyncio.ensure_future(self._serve(self._started.set_result)),
            asyncio.create_task(self._end.wait()),
        )
        await asyncio.wait({serving, end}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done() and not end.done():
            if not self._started.done():
                end.cancel()
                serving.result()  # it could not start: the main thread raises the reason
            problem = serving.exception()
            _log.error("the loop ended by itself; stopping", fault=safe_error_summary(problem) if problem else None)
            os.kill(os.getpid(), signal.SIGTERM)
            await end
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def prefer_latency() -> None:
    """Apply two interpreter settings that the interactive benchmark showed to matter.

    The hub and the asyncio loop hand work to each other: with the default of 5 ms one waits that long for
    the other. Imported modules are never freed, so the garbage collector need not visit them.
    """
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
