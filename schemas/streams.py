"""Streamed answers: the events that a reader in Python gets, and the entries that other readers find in Redis.

A streamed job has a Redis Stream of its own, `yyc3.stream.JOB_ID`, which expires ten minutes after its last
entry. Its answer passes through Redis; no other words of a caller or a model do.

Each entry has the fields `event`, `attempt` and `text`:
    text      more of the answer
    restart   the attempt before has failed: discard its text, this is the first piece of the next one
    end       the job is settled; request its outcome. `text` is empty

Entry ids are ours, `ORDER-NUMBER`: ORDER grows with every attempt, NUMBER counts its pieces from 0. So Redis
itself refuses entries of a worker whose chunk was requeued, and a reader sees whether a piece is missing.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.ids import JobId
from schemas.results import Outcome


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)

    job_id: JobId


class TextEvent(_Event):
    """More of the answer."""

    event: Literal["text"] = "text"
    text: str


class RestartEvent(_Event):
    """An attempt failed after its first piece: discard its text, the next one begins. `attempt` counts from 1."""

    event: Literal["restart"] = "restart"
    attempt: int


class EndEvent(_Event):
    """The job is settled. The text since the last restart is that of the stored result."""

    event: Literal["end"] = "end"
    outcome: Outcome


StreamEvent = Annotated[TextEvent | RestartEvent | EndEvent, Field(discriminator="event")]


def stream_name(job_id: JobId) -> str:
    """Return the name of the Redis Stream of a job."""
    return f"yyc3.stream.{job_id}"
