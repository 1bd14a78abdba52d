"""What a caller may ask for: one model a kind, told apart by `kind`. Every size has a limit."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from schemas.calls import Language, Turn
from schemas.errors import InvalidJob, explain

Text = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=200)]
MAX_DIALOGUE_CHARACTERS = 400_000
MAX_LABELS = 100


class JobFields(BaseModel):
    """What every job carries, whatever its kind.

    Attributes:
        idempotency_key: the same key with the same job returns that job; with another job it is refused.
        tenant: a label to count by; keys are unique within it.
        priority: lower goes first, like vLLM's; 0 is normal.
        deadline: after this the job is `expired` without an engine being asked.
        tags: for the caller's own bookkeeping; stored, never interpreted.
        model: an entry of models.toml; left out, the first that can do this kind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    idempotency_key: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    tenant: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "default"
    priority: int = Field(default=0, ge=-100, le=100)
    deadline: AwareDatetime | None = None
    tags: dict[Tag, Tag] = Field(default_factory=dict, max_length=16)
    model: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = None


class _AboutSpeech(JobFields):
    """Either one utterance or a dialogue. `language` picks the prompt; left out, the text decides."""

    text: Text | None = None
    turns: tuple[Turn, ...] | None = Field(default=None, min_length=1, max_length=1_000)
    language: Language | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.text is None) == (self.turns is None):
            raise ValueError("give either text (one utterance) or turns (a dialogue), not both and not neither")
        if self.turns is not None and sum(len(turn.text) for turn in self.turns) > MAX_DIALOGUE_CHARACTERS:
            raise ValueError(f"turns may hold at most {MAX_DIALOGUE_CHARACTERS:,} characters together")
        return self


class Label(BaseModel):
    """One intent of the caller's set.

    Attributes:
        name: what the result says.
        description: what the model is told about it.
        examples: utterances that mean it; they become worked examples in the prompt.
        word: the word the model answers with, where it should differ from `name`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64, pattern=r"^[^\n]*$")]
    description: Annotated[str, StringConstraints(max_length=300, pattern=r"^[^\n]*$")] | None = None
    examples: tuple[Annotated[str, StringConstraints(min_length=1, max_length=300)], ...] = Field(
        default=(), max_length=8
    )
    word: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64)] | None = None


class IntentJob(_AboutSpeech):
    """What does the customer want? `labels` left out means the call-centre set in the text's language."""

    kind: Literal["intent"] = "intent"
    labels: tuple[Label, ...] | None = Field(default=None, min_length=1, max_length=MAX_LABELS)

    @field_validator("labels")
    @classmethod
    def _names_differ(cls, labels: tuple[Label, ...] | None) -> tuple[Label, ...] | None:
        for what, said in (
            ("name", [label.name.casefold() for label in labels or ()]),
            ("word", [(label.word or label.name).casefold() for label in labels or ()]),
        ):
            if len(set(said)) != len(said):
                raise ValueError(f"two labels have the same {what}")
        return labels


class SentimentJob(_AboutSpeech):
    """How does the customer feel? `context` holds the turns before the utterance, for the model to understand it."""

    kind: Literal["sentiment"] = "sentiment"
    context: tuple[Turn, ...] = Field(default=(), max_length=50)

    @model_validator(mode="after")
    def _context_is_for_utterances(self) -> Self:
        if self.context and self.turns is not None:
            raise ValueError("context goes with text; a dialogue in turns is its own context")
        return self


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, StringConstraints(min_length=1, max_length=100_000)]


class Sampling(BaseModel):
    """How the engine chooses tokens; the names and ranges are vLLM's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = Field(default=512, ge=1, le=32_768)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: tuple[Annotated[str, StringConstraints(min_length=1, max_length=100)], ...] = Field(default=(), max_length=4)
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)


class ChatJob(JobFields):
    """Continue a conversation."""

    kind: Literal["chat"] = "chat"
    messages: tuple[Message, ...] = Field(min_length=1, max_length=500)
    sampling: Sampling = Sampling()

    @field_validator("messages")
    @classmethod
    def _not_too_much(cls, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if sum(len(message.content) for message in messages) > MAX_DIALOGUE_CHARACTERS:
            raise ValueError(f"may hold at most {MAX_DIALOGUE_CHARACTERS:,} characters together")
        return messages


Job = IntentJob | SentimentJob | ChatJob
_ADAPTER: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])


def _refuse_nul(value: Any, path: tuple[str, ...] = ()) -> None:
    """Postgres stores no NUL; name the field that holds one."""
    if isinstance(value, str) and "\x00" in value:
        raise InvalidJob(
            f"job refused: {'.'.join(path)}: holds a NUL character (\\u0000), which cannot be stored; remove it"
        )
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_nul(key, (*path, "key"))
            _refuse_nul(inner, (*path, str(key)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_nul(inner, (*path, str(index)))


def canonical(job: Job) -> bytes:
    """Everything the caller asked for but the idempotency key, as JSON; the same for the same job.

    Raises:
        InvalidJob: it holds a character that cannot be stored.
    """
    dumped = job.model_dump_json(exclude={"idempotency_key"})
    if "\\u0000" in dumped or "\x00" in (job.idempotency_key or ""):
        _refuse_nul(job.model_dump(mode="json"))
    return dumped.encode()


def parse_job(value: Job | dict[str, Any] | str | bytes) -> Job:
    """A job from a model, a dict or JSON.

    Raises:
        InvalidJob: with one sentence that names the field.
    """
    try:
        if isinstance(value, str | bytes):
            return _ADAPTER.validate_json(value)
        return _ADAPTER.validate_python(value)
    except ValidationError as error:
        raise InvalidJob(f"job refused: {explain(error)}") from error


__all__ = [
    "ChatJob",
    "IntentJob",
    "Job",
    "JobFields",
    "Label",
    "Message",
    "Sampling",
    "SentimentJob",
    "canonical",
    "parse_job",
]
