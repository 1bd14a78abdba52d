"""What travels through the broker: doorbells. They name work, they never hold a caller's words."""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.ids import JobId


class Lane(StrEnum):
    """Two lanes a model, never in one worker process."""

    INTERACTIVE = "interactive"  # somebody waits
    BULK = "bulk"  # throughput counts


class Doorbell(BaseModel):
    """Argument of the Celery task `yyc3.chunk`.

    Without `chunk` it is a permit: whoever takes it picks the best queued chunk of the model and lane at that moment.
    With `chunk` it means that one. Either may be lost or come twice; the claim decides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    model: str = Field(min_length=1, max_length=100)
    lane: Lane
    chunk: JobId | None = None


def queue_name(model: str, lane: Lane) -> str:
    """`chatglm3-6b` and `chatglm3-6b.bulk`."""
    return model if lane is Lane.INTERACTIVE else f"{model}.bulk"


__all__ = ["Doorbell", "Lane", "queue_name"]
