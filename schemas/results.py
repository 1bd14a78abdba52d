"""Results, one model for each kind, and the outcome around them."""

from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from schemas.errors import ErrorCode
from schemas.ids import JobId
from schemas.timings import Timings, Usage


class JobState(StrEnum):
    """The state of a job. The last four are final."""

    QUEUED = "queued"  # stored, waiting for a worker or for its next attempt
    RUNNING = "running"  # a worker holds its chunk
    SUCCEEDED = "succeeded"  # has a result
    FAILED = "failed"  # a dead letter: it has a code and needs a person
    CANCELLED = "cancelled"  # a caller cancelled it
    EXPIRED = "expired"  # its deadline passed first


class SentimentLabel(StrEnum):
    """The three sentiments."""

    POSITIVE = "positive"
    NEUTRAL = "neutral"
    NEGATIVE = "negative"


class Result(BaseModel):
    """What every result has, whatever its kind."""

    model_config = ConfigDict(frozen=True)

    kind: str
    truncated: bool = Field(
        default=False, description="the dialogue was longer than the model reads, its middle was left out"
    )


class IntentResult(Result):
    """The label that fits best.

    `confidence` is its probability among the labels and `probabilities` the whole distribution; both are null if the
    engine gave no token probabilities.
    """

    kind: Literal["intent"] = "intent"
    label: str
    confidence: float | None = None
    probabilities: dict[str, float] | None = None


class SentimentResult(Result):
    """Positive, neutral or negative; `score` in [-1, 1] is P(positive) - P(negative), or -1, 0, 1 without probabilities."""

    kind: Literal["sentiment"] = "sentiment"
    label: SentimentLabel
    score: float
    confidence: float | None = None
    probabilities: dict[str, float] | None = None


class ChatResult(Result):
    """The reply. `finish_reason` is `stop`, or `length` if `max_tokens` cut it."""

    kind: Literal["chat"] = "chat"
    text: str
    finish_reason: Literal["stop", "length"]


class CodeResult(Result):
    """The code without its fence. `explanation` is the text around it, null if there is none."""

    kind: Literal["code"] = "code"
    code: str
    language: str
    explanation: str | None = None


class VisionResult(Result):
    """The answer; with an `answer_schema` it is JSON, and `answer` is the parsed value."""

    kind: Literal["vision"] = "vision"
    text: str
    answer: Any = None
    finish_reason: Literal["stop", "length"]


class CompletionResult(Result):
    """The whole body of the engine's answer, as an OpenAI client reads it: choices, usage, log probabilities, tool calls."""

    kind: Literal["completion"] = "completion"
    body: dict[str, Any]


_MODELS: dict[str, type[Result]] = {}


def register_result(model: type[Result]) -> None:
    """Accept results of a kind; the default of the model's field `kind` is its name."""
    _MODELS[model.model_fields["kind"].default] = model
    _adapter.cache_clear()


def any_result() -> Any:
    """Return the type of a result of any kind, distinguished by `kind`, for pydantic."""
    return Annotated[Union[tuple(_MODELS.values())], Field(discriminator="kind")]  # noqa: UP007 - the members are not static


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[Result]:
    return TypeAdapter(any_result())


for _model in (IntentResult, SentimentResult, ChatResult, CodeResult, VisionResult, CompletionResult):
    register_result(_model)


class UnknownResult(Result):
    """A result of a kind, or of a form, that this version does not know: passed on as it is."""

    model_config = ConfigDict(frozen=True, extra="allow")


def parse_result(value: bytes) -> Result:
    """Return a stored result from its JSON; one that a newer version stored is passed on as it is."""
    try:
        return _adapter().validate_json(value)
    except ValidationError:
        return UnknownResult.model_validate_json(value)


def _validate_any(value: Any) -> Result:
    if isinstance(value, UnknownResult):
        return value
    try:
        return _adapter().validate_python(value)
    except ValidationError:
        return UnknownResult.model_validate(value)


class _OfAnyKind:
    """Lets a field hold the result of any registered kind; its JSON Schema is the union of them."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            _validate_any,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value, info: value.model_dump(mode=info.mode), info_arg=True
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(_adapter().core_schema)


class JobError(BaseModel):
    """Why a job has no result."""

    model_config = ConfigDict(frozen=True)

    code: ErrorCode
    message: str


class Outcome(BaseModel):
    """Everything known about a job. Until it is settled, only `state`, `error` and `model` have a meaning.

    Attributes:
        attempts: engine attempts that failed and count.
        model_revision: what the endpoint serves under the model's name (vLLM: the path or hub name of its weights).
        engine_version: from the endpoint's /version.
        template_hash: names the prompt template; the same hash means the same words around the caller's.
        simulated: whether a simulator answered; stored with the result.
        cached_from: the earlier job that asked the same, whose answer was copied; no token was spent.
        batch_rows: rows of the engine request that answered it; 1 if it was sent singly.
    """

    model_config = ConfigDict(frozen=True)

    job_id: JobId
    kind: str
    state: JobState
    result: Annotated[Result, _OfAnyKind] | None = None
    error: JobError | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    attempts: int = 0
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
        """Whether the state is final."""
        return self.state not in {JobState.QUEUED, JobState.RUNNING}
