"""A worker process: one lane, one or more models. Celery runs in the main thread, the asyncio loop in its own."""

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

import structlog
from celery.signals import worker_ready, worker_shutting_down

from pipeline.settings import load_settings
from pipeline.telemetry import configure_logging, fault
from pipeline.wiring import Wiring
from schemas.errors import PipelineError
from schemas.messages import Lane, queue_name
from workers.process import Limits, Process
from workers.tasks import register

_log = structlog.get_logger(__name__)
_INTERACTIVE_THREADS = 256
_BULK_THREADS_PER_MODEL = 4  # chunks at once: while one ends, the others keep the engine full


class WorkerProcess:
    """The loop thread and what lives on it."""

    def __init__(self, wiring: Wiring, lane: Lane, models: Sequence[str], node: str) -> None:
        self._wiring = wiring
        self._lane = lane
        self._models = models
        self._node = node
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process: Process | None = None
        self._end: asyncio.Event | None = None
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="asyncio", daemon=True)

    def start(self) -> None:
        """Start the loop and wait until it can take doorbells."""
        self._thread.start()
        self._ready.wait()
        if self._problem is not None:
            raise self._problem

    def current(self) -> tuple[Process, asyncio.AbstractEventLoop]:
        """The process and its loop."""
        assert self._process is not None
        assert self._loop is not None
        return self._process, self._loop

    def drain(self) -> None:
        """Begin to drain; returns at once. Celery then waits for its running tasks, which end as the drain proceeds."""
        process, loop = self.current()
        asyncio.run_coroutine_threadsafe(process.drain(), loop)

    def close(self) -> None:
        """End the loop after Celery is done."""
        _, loop = self.current()
        assert self._end is not None
        loop.call_soon_threadsafe(self._end.set)
        self._thread.join(timeout=10)

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._wiring.loop_factory()) as runner:
                runner.run(self._live())
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self._problem = error
        finally:
            self._ready.set()

    async def _live(self) -> None:
        settings = self._wiring.settings
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        async with self._wiring.adapters() as adapters:
            pools = {name: adapters.pool(name, self._lane) for name in self._models}
            limits = Limits(lease=settings.lease, drain=settings.drain)
            self._process = Process(
                adapters.database, adapters.bells, adapters.whispers, adapters.stream_writer, pools, limits, self._node
            )
            leases, end = asyncio.create_task(self._process.serve()), asyncio.create_task(self._end.wait())
            self._ready.set()
            await asyncio.wait({leases, end}, return_when=asyncio.FIRST_COMPLETED)
            if leases.done() and not end.done():
                # Without renewals every run would be given to others: better to stop, and be started again.
                problem = leases.exception()
                _log.error("leases are not kept any more; stopping", fault=fault(problem) if problem else None)
                os.kill(os.getpid(), signal.SIGTERM)
                await end
            leases.cancel()


def _prefer_latency() -> None:
    """Two interpreter settings that the interactive benchmark showed to matter.

    The hub and the asyncio loop hand work to each other: with the default of 5 ms one waits that long for the other. What
    is imported lives for ever, so the garbage collector need not walk it.
    """
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def run_worker(lane: Lane, models: Sequence[str]) -> NoReturn:
    """Run until SIGTERM or Ctrl-C; Celery then exits the process."""
    _prefer_latency()
    wiring = Wiring(load_settings())
    chosen = list(models) or [entry.name for entry in wiring.models]
    for model in chosen:
        wiring.models[model]
    node = f"{lane}.{os.getpid()}@{socket.gethostname()}"
    worker = WorkerProcess(wiring, lane, chosen, node)
    worker.start()
    app = wiring.celery_app()
    register(app, worker.current)
    worker_shutting_down.connect(lambda **_: worker.drain(), weak=False)
    queues = ",".join(queue_name(model, lane) for model in chosen)
    threads = _INTERACTIVE_THREADS if lane is Lane.INTERACTIVE else _BULK_THREADS_PER_MODEL * len(chosen)
    worker_ready.connect(lambda **_: _log.info("ready", node=node, queues=queues), weak=False)
    arguments = [
        "--quiet",
        "worker",
        "--pool",
        "threads",
        "--concurrency",
        str(threads),
        "--queues",
        queues,
        "--hostname",
        node,
    ]
    try:
        app.worker_main([*arguments, "--loglevel", "WARNING", "--without-gossip", "--without-mingle", "--task-events"])
    finally:
        worker.close()


def main(arguments: Sequence[str]) -> int:
    """`python -m workers.main LANE [MODEL ...]`; the CLI's `yyc3 worker` starts this."""
    configure_logging()
    try:
        run_worker(Lane(arguments[0]), arguments[1:])
    except PipelineError as error:
        print(f"yyc3 worker: {error.message}", file=sys.stderr)  # noqa: T201
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
