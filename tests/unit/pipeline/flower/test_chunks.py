"""What Flower remembers of a chunk."""

from typing import Any

from celery.events.state import State

from pipeline.flower.chunks import ChunkTask

Event = tuple[str, dict[str, Any]]


def task(*events: Event) -> ChunkTask:
    made = ChunkTask(uuid="u", cluster_state=State())
    for number, (kind, fields) in enumerate(events):
        made.event(kind, float(number), float(number), fields)
    return made


RECEIVED: Event = ("received", {"args": "({'v': 1, 'model': 'chatglm3-6b', 'lane': 'bulk'},)"})
PROGRESS: Event = ("progress", {"rows": 100, "rows_done": 40, "chunk": 2048, "batch": 7})


def test_progress_updates_numbers_and_not_the_state() -> None:
    chunk = task(RECEIVED, ("started", {}), PROGRESS)
    assert (chunk.state, chunk.progress, chunk.model, chunk.batch) == ("STARTED", "40 / 100", "chatglm3-6b", 7)
    assert chunk.as_dict()["progress"] == "40 / 100"


def test_a_revoked_chunk_is_revoked_although_it_sent_progress() -> None:
    assert task(RECEIVED, ("started", {}), PROGRESS, ("revoked", {})).state == "REVOKED"


def test_a_late_progress_event_does_not_reopen_a_chunk_that_ended() -> None:
    result = "{'chunk': 2048, 'batch': 7, 'rows': 100, 'rows_done': 100, 'rows_failed': 0}"
    chunk = task(RECEIVED, ("started", {}), ("succeeded", {"result": result, "runtime": 1.0}), PROGRESS)
    assert (chunk.state, chunk.progress) == ("SUCCESS", "100 / 100")


def test_foreign_arguments_are_ignored() -> None:
    assert task(("received", {"args": "(<object>, ...)"}), ("succeeded", {"result": "None"})).state == "SUCCESS"
