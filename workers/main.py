"""A worker process: one lane, one or more models. Celery runs in the main thread, the asyncio loop in its own."""

import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import structlog
from celery import Celery
from celery.signals import worker_ready, worker_shutting_down

from pipeline.broker import declared
from pipeline.observability.logging import configure_logging
from pipeline.settings import load_settings
from pipeline.wiring import Wiring
from schemas.doorbells import Lane, queue_name
from schemas.errors import PipelineError
from workers.delivery.consumption import Taking
from workers.delivery.message_guard import GuardedConsumer
from workers.delivery.tasks import register
from workers.execution.worker import Limits, Process
from workers.loop import LoopThread, prefer_latency

_log = structlog.get_logger(__name__)
_INTERACTIVE_THREADS = 256
_BULK_THREADS_PER_MODEL = 4  # chunks at once: while one ends, the others keep the engine full


def run_worker(lane: Lane, models: Sequence[str]) -> NoReturn:
    """Run until SIGTERM or Ctrl-C; Celery then exits the process."""
    prefer_latency()
    wiring = Wiring(load_settings())
    chosen = list(models) or [entry.name for entry in wiring.models]
    for model in chosen:
        wiring.models[model]
    node = f"{lane}.{os.getpid()}@{socket.gethostname()}"
    processes: list[Process] = []
    taking = Taking(lane)

    async def serve(ready: Callable[[], None]) -> None:
        limits = Limits(lease=wiring.settings.lease, drain=wiring.settings.drain)
        async with wiring.adapters() as adapters:
            pools = {name: adapters.pool(name, lane) for name in chosen}
            process = Process(
                adapters.database,
                adapters.bells,
                adapters.whispers,
                adapters.stream_writer,
                pools,
                limits,
                node,
                lane,
                taking,
            )
            processes.append(process)
            ready()
            await process.serve()

    loop = LoopThread(wiring.loop_factory(), serve)
    loop.start()
    app = wiring.celery_app()
    register(app, processes[0], loop)
    worker_ready.connect(lambda sender, **_: taking.started(sender), weak=False)
    # Returns at once. Celery then waits for its running tasks, which end as the drain proceeds.
    worker_shutting_down.connect(lambda **_: loop.run(processes[0].drain()), weak=False)
    queues = [queue_name(model, lane) for model in chosen]
    threads = _INTERACTIVE_THREADS if lane is Lane.INTERACTIVE else _BULK_THREADS_PER_MODEL * len(chosen)
    run_celery(app, loop, node, queues, threads)


def run_celery(app: Celery, loop: LoopThread, node: str, queues: Sequence[str], threads: int) -> NoReturn:
    """Celery in this thread until SIGTERM or Ctrl-C, then the end of the loop."""
    app.conf.worker_consumer = f"{GuardedConsumer.__module__}:{GuardedConsumer.__name__}"
    for queue in queues:
        app.amqp.queues.add(declared(queue))
    worker_ready.connect(lambda **_: _log.info("ready", node=node, queues=",".join(queues)), weak=False)
    arguments = ["--quiet", "worker", "--pool", "threads", "--concurrency", str(threads), "--hostname", node]
    arguments += ["--queues", ",".join(queues), "--loglevel", "WARNING", "--without-gossip", "--without-mingle"]
    try:
        app.worker_main([*arguments, "--task-events"])
    finally:
        loop.close()


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
