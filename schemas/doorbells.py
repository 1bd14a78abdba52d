"""Doorbells: messages without payload that travel through the broker. They never have the words of a caller."""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.ids import JobId


class Lane(StrEnum):
    """The two lanes of a model, never served by one worker process."""

    INTERACTIVE = "interactive"  # a caller waits for each job
    BULK = "bulk"  # throughput matters


class Doorbell(BaseModel):
    """The argument of the Celery task `yyc3.chunk`.

    With `chunk` it says that this chunk was queued. Either way the worker that receives it claims
    the best queued chunk of the model and lane at that moment; an open doorbell, without a chunk, is published
    again when that chunk ends. Either may be lost or delivered twice; the
    claim decides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    model: str = Field(min_length=1, max_length=100)
    lane: Lane
    chunk: JobId | None = None


def queue_name(model: str, lane: Lane) -> str:
    """Return the queue of a model and lane, such as `chatglm3-6b` and `chatglm3-6b.bulk`."""
    return model if lane is Lane.INTERACTIVE else f"{model}.bulk"
