"""A worker process: one lane, one or more models. Celery runs in the main thread, the asyncio loop in its own."""

import asyncio
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import structlog
from celery import Celery
from celery.signals import worker_ready, worker_shutting_down
from celery.worker import state

from pipeline.broker import broker_of
from pipeline.environment import take_out_others
from pipeline.models import Models
from pipeline.observability.logging import configure_logging
from pipeline.settings import load_settings
from pipeline.store.processes import Role
from pipeline.wiring import Wiring
from schemas.doorbells import Lane, queue_name
from schemas.errors import PipelineError
from workers.delivery.consumption import QueueConsumption
from workers.delivery.message_guard import QuarantineConsumer
from workers.delivery.tasks import register
from workers.execution.worker import Worker, WorkerSettings
from workers.loop import LoopThread, prefer_latency

_log = structlog.get_logger(__name__)
_begins_again, _is_stopped = threading.Event(), threading.Event()
_INTERACTIVE_THREADS = 256
_BULK_THREADS_PER_MODEL = 4  # chunks at once: while one ends, the others keep the engine full


def run_worker(lane: Lane, models: Sequence[str]) -> NoReturn:
    """Run until SIGTERM or Ctrl-C; Celery then exits the process.

    Raises:
        UnknownModel: one of the models is not in models.toml.
    """
    prefer_latency()
    wiring = Wiring(load_settings())
    chosen = [wiring.models[name].name for name in models] or [entry.name for entry in wiring.models]
    node = f"{lane}.{os.getpid()}@{socket.gethostname()}"
    settings = WorkerSettings(node, lane, wiring.settings.lease, wiring.settings.drain)
    consumption = QueueConsumption(lane)

    async def serve(ready: Callable[[Worker], None]) -> None:
        async with wiring.adapters() as adapters:
            worker = Worker(
                settings,
                adapters.database,
                adapters.publisher,
                adapters.notifier,
                adapters.stream_writer,
                {name: adapters.pool(name, lane) for name in chosen},
                consumption,
            )
            presence = adapters.presence(Role.WORKER, node, lambda: worker.held_chunks)
            ready(worker)
            if not models:
                adapters.on_models.append(partial(_begin_again_for_others, chosen, adapters.models, worker))
            async with asyncio.TaskGroup() as group:
                group.create_task(presence.report_forever())
                group.create_task(worker.serve())

    loop = LoopThread(wiring.loop_factory(), serve)
    worker = loop.start()
    app = wiring.celery_app()
    register(app, worker, loop)
    worker_ready.connect(lambda sender, **_: consumption.start(sender), weak=False)
    # Returns at once. Celery then waits for its running tasks, which end as the drain proceeds.
    worker_shutting_down.connect(lambda **_: loop.run(worker.drain()), weak=False)
    queues = [queue_name(model, lane) for model in chosen]
    threads = _INTERACTIVE_THREADS if lane is Lane.INTERACTIVE else _BULK_THREADS_PER_MODEL * len(chosen)
    run_celery(app, loop, node, queues, threads)


async def _begin_again_for_others(served: Sequence[str], models: Models, worker: Worker) -> None:
    """Drain and begin again, in this process, when there are other models than those whose queues are consumed here."""
    if sorted(served) == sorted(entry.name for entry in models) or _begins_again.is_set():
        return
    _log.info("there are other models now: this worker drains and begins again")
    _begins_again.set()
    # Not by a signal: one that comes meanwhile is meant to stop this process.
    state.should_stop = os.EX_OK  # type: ignore[assignment]
    await worker.drain()


def run_celery(app: Celery, loop: LoopThread[Any], node: str, queues: Sequence[str], threads: int) -> NoReturn:
    """Run Celery in this thread until SIGTERM or Ctrl-C, then end the loop."""
    app.conf.worker_consumer = f"{QuarantineConsumer.__module__}:{QuarantineConsumer.__name__}"
    for queue in queues:
        app.amqp.queues.add(broker_of(app).queue(queue))
    worker_shutting_down.connect(lambda **_: _is_stopped.set(), weak=False)
    worker_ready.connect(lambda **_: _log.info("ready", node=node, queues=",".join(queues)), weak=False)
    arguments = ["--quiet", "worker", "--pool", "threads", "--concurrency", str(threads), "--hostname", node]
    arguments += ["--queues", ",".join(queues), "--loglevel", "WARNING", "--without-gossip", "--without-mingle"]
    try:
        app.worker_main([*arguments, "--task-events"])
    finally:
        loop.close()
        if _begins_again.is_set() and not _is_stopped.is_set():
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - our own interpreter


def main(arguments: Sequence[str]) -> int:
    """Run `python -m workers.main LANE [MODEL ...]`, which `yyc3 worker` starts."""
    take_out_others()
    configure_logging()
    try:
        run_worker(Lane(arguments[0]), arguments[1:])
    except PipelineError as error:
        print(f"yyc3 worker: {error.message}", file=sys.stderr)  # noqa: T201
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
