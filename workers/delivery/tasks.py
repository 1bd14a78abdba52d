"""The one Celery task: a doorbell arrives, a chunk of jobs is run, Flower shows its progress."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import structlog
from celery import Celery, Task
from celery.exceptions import Retry
from kombu.exceptions import OperationalError
from pydantic import ValidationError

from pipeline.broker import TASK_NAME
from pipeline.observability.logging import safe_error_summary
from schemas.doorbells import Doorbell
from workers.delivery.message_guard import ValidatedTask
from workers.execution.run import Run
from workers.execution.worker import Worker
from workers.loop import LoopThread

_log = structlog.get_logger(__name__)
_PROGRESS_SECONDS = 1.0


class DoorbellTask(ValidatedTask):
    """A task whose one argument is a doorbell."""

    def validate(self, arguments: list[Any], named: dict[str, Any]) -> None:
        """Refuse anything else. Its content is not repeated: it may be the words of a caller."""
        if len(arguments) != 1 or named:
            raise ValueError("not a doorbell")
        try:
            Doorbell.model_validate(arguments[0])
        except ValidationError:
            raise ValueError("not a doorbell") from None


class ChunkSetback(Exception):  # noqa: N818 - nothing broke in this process
    """What an operator reads in Flower about a chunk that achieved nothing; never the words of a caller."""


class _Progress:
    """Shows the progress of one chunk, at most once a second and only when it changed."""

    def __init__(self, task: "Task[Any, Any]", doorbell: Doorbell) -> None:
        self._task = task
        self._doorbell = doorbell
        self._run: Run | None = None
        self._shown = -1

    def started(self, run: Run) -> None:
        """Use the run, which exists from now on."""
        self._run = run

    def show(self) -> None:
        """Send an event if rows were done since the last one."""
        run = self._run
        if run is None or run.done_rows == self._shown:
            return
        self._shown = run.done_rows
        try:
            self._task.send_event(
                "task-progress",
                retry=False,
                model=self._doorbell.model,
                lane=self._doorbell.lane,
                chunk=run.claim.first_job_id,
                batch=run.claim.batch_id,
                batch_name=run.claim.batch_name,
                tenant=run.claim.tenant,
                rows=run.claim.rows,
                rows_done=run.done_rows,
                rows_failed=run.failed,
            )
        except (OperationalError, ConnectionError, TimeoutError) as error:
            _log.warning("progress not shown", reason=type(error).__name__)


def register(app: Celery, worker: Worker, loop: LoopThread[Worker]) -> None:
    """Add the task to an application."""

    # `throws`: Celery shows a setback in Flower, and writes no traceback of it to the log.
    @app.task(name=TASK_NAME, base=DoorbellTask, bind=True, ignore_result=True, shared=False, throws=(ChunkSetback,))
    def run_chunk(self: "Task[Any, Any]", message: Any) -> dict[str, Any]:
        """Wait in a thread of Celery while the loop works."""
        doorbell = Doorbell.model_validate(message)
        progress = _Progress(self, doorbell)
        handled = loop.run(worker.handle(doorbell, progress.started))
        try:
            done = _wait(handled, progress.show)
        except Exception as error:  # noqa: BLE001 - Celery shows the text of an exception in events; it may quote a caller
            raise RuntimeError(safe_error_summary(error)) from None
        if "retry" in done:  # not a success: recovery publishes another doorbell when it is due
            progress.show()
            raise Retry(exc=ChunkSetback(done["retry"]))
        if "failed" in done:
            progress.show()
            raise ChunkSetback(done["failed"])
        return done


def _wait(handled: "Future[dict[str, Any]]", show: Callable[[], None]) -> dict[str, Any]:
    while True:
        try:
            return handled.result(timeout=_PROGRESS_SECONDS)
        except TimeoutError:
            if handled.done():
                return handled.result()
        show()
