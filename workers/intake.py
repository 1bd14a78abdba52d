"""The intake process: jobs that come as messages, for callers that speak Celery and not Python."""

import os
import socket
import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, NoReturn
from uuid import uuid4

from celery import Celery, Task
from celery.exceptions import Reject
from celery.signals import worker_shutting_down
from celery.worker.request import Request

from pipeline.broker import HIDDEN
from pipeline.jobs.intake import Closing, Door
from pipeline.observability.logging import configure_logging
from pipeline.settings import load_settings
from pipeline.wiring import Wiring
from schemas.errors import PipelineError
from schemas.intake import CANCEL_TASK, INTAKE_QUEUE, SUBMIT_TASK
from workers.delivery.message_guard import GuardedTask
from workers.loop import LoopThread, prefer_latency
from workers.main import run_celery

_VISIBILITY = timedelta(minutes=1)  # a message is held for milliseconds, and what comes twice finds its job by its key
_THREADS = 64  # messages at once; those that arrive together are stored together


class HiddenArguments(Request):
    """A message whose arguments are a caller's words: events, Flower, logs and `inspect` show `(hidden)`."""

    _request_dict: dict[str, Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._argsrepr = self._kwargsrepr = HIDDEN
        self._request_dict |= {"argsrepr": HIDDEN, "kwargsrepr": HIDDEN}

    def info(self, safe: bool = False) -> Any:  # noqa: ARG002 - never otherwise
        """What `inspect` shows."""
        return super().info(safe=True)


class IntakeTask(GuardedTask):
    """Acknowledged when the job is stored: until then the message is all there is of it."""

    acks_late = True
    ignore_result = True
    Request = f"{HiddenArguments.__module__}:{HiddenArguments.__name__}"


def register(app: Celery, door: Door, loop: LoopThread) -> None:
    """Add the tasks to an application. Celery waits in a thread of each while the loop works."""

    @app.task(name=SUBMIT_TASK, base=IntakeTask, bind=True, shared=False)
    def submit(task: "Task[Any, Any]", /, *_: Any, **arguments: Any) -> str:
        return _wait(loop, door.admit(arguments, str(task.request.id)))

    @app.task(name=CANCEL_TASK, base=IntakeTask, bind=True, shared=False)
    def cancel(task: "Task[Any, Any]", /, *_: Any, **arguments: Any) -> str:
        return _wait(loop, door.cancel(arguments, str(task.request.id)))


def _wait(loop: LoopThread, work: Coroutine[Any, Any, str]) -> str:
    try:
        return loop.run(work).result()
    except Closing:
        raise Reject("this process stops", requeue=True) from None


def run_intake() -> NoReturn:
    """Run until SIGTERM or Ctrl-C; Celery then exits the process."""
    prefer_latency()
    wiring = Wiring(load_settings())
    doors: list[Door] = []

    async def serve(ready: Callable[[], None]) -> None:
        channel = f"yyc3.settled.{uuid4().hex}"
        async with wiring.adapters() as adapters:
            submitter = adapters.submitter(channel)
            door = Door(
                adapters.models,
                adapters.database,
                adapters.bells,
                adapters.whispers,
                adapters.stream_writer,
                submitter,
                channel,
            )
            doors.append(door)
            ready()
            await door.serve()

    loop = LoopThread(wiring.loop_factory(), serve)
    loop.start()
    app = wiring.celery_app(visibility=_VISIBILITY)
    register(app, doors[0], loop)
    worker_shutting_down.connect(lambda **_: loop.loop.call_soon_threadsafe(doors[0].close), weak=False)
    run_celery(app, loop, f"intake.{os.getpid()}@{socket.gethostname()}", [INTAKE_QUEUE], _THREADS)


def main() -> int:
    """`python -m workers.intake`; the CLI's `yyc3 intake` starts this."""
    configure_logging()
    try:
        run_intake()
    except PipelineError as error:
        print(f"yyc3 intake: {error.message}", file=sys.stderr)  # noqa: T201
        return 2


if __name__ == "__main__":
    sys.exit(main())
