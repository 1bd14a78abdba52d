"""A streamed answer, piece by piece: what a reader in Python gets, and the entries that other readers find in Redis.

A streamed job has a Redis Stream of its own, `yyc3.stream.JOB_ID`, that lives ten minutes longer than its last entry. Its
answer passes through Redis, which no other words of a caller or a model do.

Each entry has the fields `event`, `try` and `text`:
    text      more of the answer
    restart   the try before has failed: forget its text, this is the first piece of the next one
    end       the job is settled; ask for its outcome. `text` is empty

Entry ids are ours, `ORDER-NUMBER`: ORDER grows with every try, NUMBER counts the pieces of one from 0. So Redis itself
refuses what a worker says that was believed dead, and a reader sees whether a piece is missing.
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
    """A try failed after it had begun to answer: forget its text, another begins. `try_number` counts from 1."""

    event: Literal["restart"] = "restart"
    try_number: int


class EndEvent(_Event):
    """The job is settled. All text since the last restart is the stored result's."""

    event: Literal["end"] = "end"
    outcome: Outcome


StreamEvent = Annotated[TextEvent | RestartEvent | EndEvent, Field(discriminator="event")]


def stream_name(job_id: JobId) -> str:
    """The Redis Stream of a job."""
    return f"yyc3.stream.{job_id}"


__all__ = ["EndEvent", "RestartEvent", "StreamEvent", "TextEvent", "stream_name"]
