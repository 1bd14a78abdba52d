"""The one Celery task: a doorbell comes in, a chunk of jobs is done, Flower sees how far it is."""

from concurrent.futures import Future
from typing import Any

import structlog
from celery import Celery, Task
from kombu.exceptions import OperationalError
from pydantic import ValidationError

from pipeline.broker import TASK_NAME
from pipeline.observability.logging import fault
from schemas.doorbells import Doorbell
from workers.delivery.message_guard import GuardedTask
from workers.execution.run import Run
from workers.execution.worker import Process
from workers.loop import LoopThread

_log = structlog.get_logger(__name__)
_PROGRESS_SECONDS = 1.0


class DoorbellTask(GuardedTask):
    """A task whose one argument is a doorbell."""

    def admit(self, arguments: list[Any], named: dict[str, Any]) -> None:
        """Anything else is put aside. Its content is not repeated: what is no doorbell may be a caller's words."""
        if len(arguments) != 1 or named:
            raise ValueError("not a doorbell")
        try:
            Doorbell.model_validate(arguments[0])
        except ValidationError:
            raise ValueError("not a doorbell") from None


def register(app: Celery, process: Process, loop: LoopThread) -> None:
    """Add the task to an application."""

    @app.task(name=TASK_NAME, base=DoorbellTask, bind=True, ignore_result=True, shared=False)
    def run_chunk(self: "Task[Any, Any]", message: Any) -> dict[str, Any]:
        """Celery waits here in a thread while the loop works."""
        doorbell = Doorbell.model_validate(message)
        seen: list[Run] = []
        answer = loop.run(process.answer(doorbell, seen.append))
        try:
            return _wait(self, doorbell, answer, seen)
        except Exception as error:  # noqa: BLE001 - Celery shows an exception's text in events; it may quote a caller
            raise RuntimeError(fault(error)) from None


def _wait(
    task: "Task[Any, Any]", doorbell: Doorbell, answer: "Future[dict[str, Any]]", seen: list[Run]
) -> dict[str, Any]:
    """Wait for the answer; say how far the chunk is, at most once a second and only when it moved."""
    last = -1
    while True:
        try:
            return answer.result(timeout=_PROGRESS_SECONDS)
        except TimeoutError:
            if answer.done():
                return answer.result()
        if seen and seen[0].done_rows != last:
            last = seen[0].done_rows
            _show(task, doorbell, seen[0])


def _show(task: "Task[Any, Any]", doorbell: Doorbell, run: Run) -> None:
    try:
        task.send_event(
            "task-progress",
            retry=False,
            model=doorbell.model,
            lane=doorbell.lane,
            chunk=run.claim.first_job_id,
            batch=run.claim.batch_id,
            rows=run.claim.rows,
            rows_done=run.done_rows,
            rows_failed=run.failed,
        )
    except (OperationalError, ConnectionError, TimeoutError) as error:
        _log.warning("progress not shown", reason=type(error).__name__)


__all__ = ["register"]
