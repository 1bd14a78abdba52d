"""The intake process: jobs that arrive as messages, for callers that use Celery and not Python."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, NoReturn
from uuid import uuid4

from celery import Celery, Task
from celery.exceptions import Reject
from celery.signals import worker_ready, worker_shutting_down
from celery.worker.request import Request

from pipeline.broker import REDACTED
from pipeline.environment import take_out_others
from pipeline.jobs.intake import Intake, ShuttingDown
from pipeline.observability.logging import configure_logging
from pipeline.settings import load_settings
from pipeline.store.processes import Role
from pipeline.wiring import Wiring
from schemas.errors import PipelineError
from schemas.intake import CANCEL_TASK, INTAKE_QUEUE, SUBMIT_TASK
from workers.delivery.consumption import HeldMessages
from workers.delivery.message_guard import ValidatedTask
from workers.loop import LoopThread, prefer_latency
from workers.main import run_celery

_VISIBILITY = timedelta(
    minutes=1
)  # a message is held for milliseconds, and one delivered twice finds its job by its key
_HELD_BYTES = 16 * 1024 * 1024  # a message is several times in memory until its job is stored
_THREADS = 64  # messages at once; those that arrive together are stored together


class RedactedRequest(Request):
    """A message whose arguments are the words of a caller: events, Flower, logs and `inspect` show `(redacted)`."""

    _request_dict: dict[str, Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._argsrepr = self._kwargsrepr = REDACTED
        self._request_dict |= {"argsrepr": REDACTED, "kwargsrepr": REDACTED}

    def info(self, safe: bool = False) -> Any:  # noqa: ARG002 - always safe
        """Return what `inspect` shows."""
        return super().info(safe=True)


class IntakeTask(ValidatedTask):
    """A task that is acknowledged when its job is stored: until then the message is the only copy."""

    acks_late = True
    ignore_result = True
    held = HeldMessages(INTAKE_QUEUE, _HELD_BYTES)

    def on_schedule(self, named: dict[str, Any], eta: Any, expires: Any) -> None:
        """Make the times of a message arguments, so that its sender is answered about them."""
        if self.name == SUBMIT_TASK:
            named |= {name: value for name, value in (("eta", eta), ("expires", expires)) if value is not None}

    Request = f"{RedactedRequest.__module__}:{RedactedRequest.__name__}"


def register(app: Celery, intake: Intake, loop: LoopThread[Any]) -> None:
    """Add the tasks to an application. Celery waits in a thread for each message while the loop works."""

    @app.task(name=SUBMIT_TASK, base=IntakeTask, bind=True, shared=False)
    def submit(task: "Task[Any, Any]", /, *_: Any, **arguments: Any) -> str:
        return _wait(loop, intake.accept(arguments, str(task.request.id)))

    @app.task(name=CANCEL_TASK, base=IntakeTask, bind=True, shared=False)
    def cancel(task: "Task[Any, Any]", /, *_: Any, **arguments: Any) -> str:
        return _wait(loop, intake.cancel(arguments, str(task.request.id)))


def _wait(loop: LoopThread[Any], work: Coroutine[Any, Any, str]) -> str:
    try:
        return loop.run(work).result()
    except ShuttingDown:
        raise Reject("this process stops", requeue=True) from None


def run_intake() -> NoReturn:
    """Run until SIGTERM or Ctrl-C; Celery then exits the process."""
    prefer_latency()
    wiring = Wiring(load_settings())

    async def serve(ready: Callable[[Intake], None]) -> None:
        channel = f"yyc3.settled.{uuid4().hex}"
        async with wiring.adapters() as adapters:
            intake = Intake(
                adapters.models,
                adapters.database,
                adapters.publisher,
                adapters.notifier,
                adapters.stream_writer,
                adapters.submitter(channel),
                channel,
            )
            ready(intake)
            async with asyncio.TaskGroup() as group:
                group.create_task(adapters.presence(Role.INTAKE).report_forever())
                group.create_task(intake.serve())

    loop = LoopThread(wiring.loop_factory(), serve)
    intake = loop.start()
    app = wiring.celery_app(visibility=_VISIBILITY)
    app.conf.worker_prefetch_multiplier = 1
    register(app, intake, loop)
    worker_ready.connect(lambda sender, **_: IntakeTask.held.start(sender), weak=False)
    worker_shutting_down.connect(lambda **_: loop.loop.call_soon_threadsafe(intake.close), weak=False)
    run_celery(app, loop, f"intake.{os.getpid()}@{socket.gethostname()}", [INTAKE_QUEUE], _THREADS)


def main() -> int:
    """Run `python -m workers.intake`, which `yyc3 intake` starts."""
    take_out_others()
    configure_logging()
    try:
        run_intake()
    except PipelineError as error:
        print(f"yyc3 intake: {error.message}", file=sys.stderr)  # noqa: T201
        return 2


if __name__ == "__main__":
    sys.exit(main())
