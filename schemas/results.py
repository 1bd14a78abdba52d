"""What a job came to: a result type for every kind, and the outcome around it."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import ErrorCode
from schemas.ids import JobId
from schemas.timings import Timings, Usage


class JobState(StrEnum):
    """Where a job is. The last four never change again."""

    QUEUED = "queued"  # stored, waiting for a worker or for its next try
    RUNNING = "running"  # a worker holds its chunk
    SUCCEEDED = "succeeded"  # has a result
    FAILED = "failed"  # a dead letter: has a code, needs a person
    CANCELLED = "cancelled"  # somebody cancelled it
    EXPIRED = "expired"  # its deadline came first


class SentimentLabel(StrEnum):
    """The three sentiments."""

    POSITIVE = "positive"
    NEUTRAL = "neutral"
    NEGATIVE = "negative"


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True)

    truncated: bool = Field(
        default=False, description="the dialogue was longer than the model reads, its middle was left out"
    )


class IntentResult(_Result):
    """The caller's label that fits best.

    `confidence` is its probability among the labels and `probabilities` the whole distribution; both are null where the
    engine gave no token probabilities.
    """

    kind: Literal["intent"] = "intent"
    label: str
    confidence: float | None = None
    probabilities: dict[str, float] | None = None


class SentimentResult(_Result):
    """Positive, neutral or negative; `score` in [-1, 1] is P(positive) - P(negative), or -1, 0, 1 without probabilities."""

    kind: Literal["sentiment"] = "sentiment"
    label: SentimentLabel
    score: float
    confidence: float | None = None
    probabilities: dict[str, float] | None = None


class ChatResult(_Result):
    """The reply. `finish_reason` is `stop`, or `length` where `max_tokens` cut it."""

    kind: Literal["chat"] = "chat"
    text: str
    finish_reason: Literal["stop", "length"]


class CodeResult(_Result):
    """The code without its fence. `explanation` is what the model wrote around it, null where it wrote nothing."""

    kind: Literal["code"] = "code"
    code: str
    language: str
    explanation: str | None = None


class VisionResult(_Result):
    """The answer; with an `answer_schema` it is JSON, and `answer` holds it parsed."""

    kind: Literal["vision"] = "vision"
    text: str
    answer: Any = None
    finish_reason: Literal["stop", "length"]


Result = Annotated[IntentResult | SentimentResult | ChatResult | CodeResult | VisionResult, Field(discriminator="kind")]


class JobError(BaseModel):
    """Why a job has no result."""

    model_config = ConfigDict(frozen=True)

    code: ErrorCode
    message: str


class Outcome(BaseModel):
    """Everything known about a job. Until it is settled only `state` says something.

    Attributes:
        tries: engine attempts that failed and counted.
        model_revision: what the endpoint says it serves under the model's name (vLLM: the path or hub name of its weights).
        engine_version: what the endpoint's /version said.
        template_hash: which prompt template asked; the same hash means the same words around the caller's.
        simulated: true where a simulator answered, for ever.
        cached_from: the earlier job that asked the same, whose answer this is a copy of; no token was spent.
        batch_rows: rows of the engine request that answered it; 1 where it went alone.
    """

    model_config = ConfigDict(frozen=True)

    job_id: JobId
    kind: str
    state: JobState
    result: Result | None = None
    error: JobError | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    tries: int = 0
    model: str | None = None
    model_revision: str | None = None
    endpoint: str | None = None
    engine_version: str | None = None
    template_hash: str | None = None
    simulated: bool = False
    cached_from: JobId | None = None
    batch_rows: int | None = None

    @property
    def settled(self) -> bool:
        """Whether this will never change again."""
        return self.state not in {JobState.QUEUED, JobState.RUNNING}


__all__ = [
    "ChatResult",
    "CodeResult",
    "IntentResult",
    "JobError",
    "JobState",
    "Outcome",
    "Result",
    "SentimentLabel",
    "SentimentResult",
    "VisionResult",
]
