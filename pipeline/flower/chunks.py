"""A Celery task that knows its chunk. Flower has no plug-in interface; this replaces one class of its state."""

import ast
from typing import Any

import flower.events
from celery.events.state import Task
from flower.events import EventsState
from flower.views.tasks import TASK_COLUMNS

CHUNK_COLUMNS = {
    "progress": "Rows done",
    "rows_failed": "Rows failed",
    "model": "Model",
    "lane": "Lane",
    "batch": "Batch",
    "batch_name": "Batch name",
    "tenant": "Tenant",
    "chunk": "Chunk",
}
_FIELDS = (*CHUNK_COLUMNS, "rows", "rows_done", "rows_failed")


def _parse(text: Any) -> dict[str, Any]:
    """Return the dict in the arguments or result of a task, as Celery prints them in events; empty if there is none."""
    try:
        value = ast.literal_eval(str(text))
    except (ValueError, SyntaxError):
        return {}
    if isinstance(value, tuple | list) and value:
        value = value[0]
    return value if isinstance(value, dict) else {}


class ChunkTask(Task):
    """A task with the fields of its chunk, on its page, in the list and in the API.

    Celery would make `task-progress` a state of its own, which outranks STARTED and so hides later states.
    Here it only updates numbers.
    """

    progress: Any = None
    model: Any = None
    lane: Any = None
    batch: Any = None
    batch_name: Any = None
    tenant: Any = None
    chunk: Any = None
    rows: Any = None
    rows_done: Any = None
    rows_failed: Any = None
    idle = False
    _fields = (*Task._fields, *_FIELDS)  # type: ignore[attr-defined]
    _info_fields = (*Task._info_fields, *_FIELDS)  # type: ignore[attr-defined]

    def event(  # type: ignore[override]
        self, type_: str, timestamp: Any = None, local_received: Any = None, fields: Any = None, **rest: Any
    ) -> None:
        """Process an event."""
        fields = dict(fields or {})
        if type_ == "progress":
            if self.succeeded is None:  # events may overtake each other
                self._update(fields)
            return
        super().event(type_, timestamp, local_received, fields, **rest)
        if type_ == "received":
            self._update(_parse(fields.get("args")))
        elif type_ == "succeeded":
            result = _parse(fields.get("result"))
            if result.get("rows"):
                self._update(result)
            else:
                self.idle = True

    def _update(self, fields: dict[str, Any]) -> None:
        known = {key: fields[key] for key in _FIELDS if fields.get(key) is not None}
        self.__dict__.update(known)
        if self.rows is not None:
            self.progress = f"{self.rows_done or 0} / {self.rows}"


class ChunkState(EventsState):  # type: ignore[misc]
    """Flower's state with our tasks, without open doorbells that found no chunk: they are normal and of no interest."""

    Task = ChunkTask

    def event(self, event: dict[str, Any]) -> None:
        """Process an event."""
        super().event(event)
        task = self.tasks.get(event.get("uuid"))
        if task is not None and task.idle:
            del self.tasks[task.uuid]
            self.search_engine.remove(task.uuid)


def install() -> None:
    """Make Flower use these classes; call it before its application is built."""
    flower.events.EventsState = ChunkState
    TASK_COLUMNS.update(CHUNK_COLUMNS)
