"""What a caller may ask for: one model for each kind, distinguished by `kind`. Every size has a limit."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, Union

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from schemas.answer_schema import check_answer_schema
from schemas.calls import Language, Turn
from schemas.completions import CompletionJob
from schemas.errors import InvalidJob
from schemas.job import Job
from schemas.limits import MAX_DIALOGUE_CHARACTERS, MAX_IMAGE_BYTES, MAX_IMAGE_CHARACTERS, MAX_IMAGES
from schemas.problems import all_problems

Text = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
MAX_LABELS = 100
Image = Annotated[str, StringConstraints(min_length=1, max_length=MAX_IMAGE_CHARACTERS)]


class UtteranceJob(Job):
    """One utterance or one dialogue. `language` selects the prompt; by default the text decides."""

    text: Text | None = None
    turns: tuple[Turn, ...] | None = Field(default=None, min_length=1, max_length=1_000)
    language: Language | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.text is None) == (self.turns is None):
            raise ValueError("provide exactly one of text (one utterance) and turns (a dialogue)")
        if self.turns is not None and sum(len(turn.text) for turn in self.turns) > MAX_DIALOGUE_CHARACTERS:
            raise ValueError(f"turns may have at most {MAX_DIALOGUE_CHARACTERS:,} characters together")
        return self


class Label(BaseModel):
    """One intent of the caller's set.

    Attributes:
        name: the label in the result.
        description: explains the label to the model.
        examples: utterances of this intent; they become worked examples in the prompt.
        word: the word that the model answers with, if it should differ from `name`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64, pattern=r"^[^\n]*$")]
    description: Annotated[str, StringConstraints(max_length=300, pattern=r"^[^\n]*$")] | None = None
    examples: tuple[Annotated[str, StringConstraints(min_length=1, max_length=300)], ...] = Field(
        default=(), max_length=8
    )
    word: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64)] | None = None


class IntentJob(UtteranceJob):
    """Find what the customer wants. Without `labels`, those of a call centre in the language of the text are used."""

    kind: Literal["intent"] = "intent"
    labels: tuple[Label, ...] | None = Field(default=None, min_length=1, max_length=MAX_LABELS)

    @field_validator("labels")
    @classmethod
    def _names_differ(cls, labels: tuple[Label, ...] | None) -> tuple[Label, ...] | None:
        for what, values in (
            ("name", [label.name.casefold() for label in labels or ()]),
            ("word", [(label.word or label.name).casefold() for label in labels or ()]),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"two labels have the same {what}")
        return labels


class SentimentJob(UtteranceJob):
    """Find how the customer feels. `context` has the turns before the utterance, so that the model understands it."""

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
    """How the engine chooses tokens; names and ranges are vLLM's.

    The default of `max_tokens` is 512, for code 2,048.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int | None = Field(default=None, ge=1, le=32_768)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: tuple[Annotated[str, StringConstraints(min_length=1, max_length=100)], ...] = Field(default=(), max_length=4)
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)


class StreamedJob(Job):
    """A job that is answered in free text. `stream` sends the answer in pieces as it is generated, see schemas/streams.py."""

    sampling: Sampling = Sampling()
    stream: bool = False

    @property
    def wanted_tokens(self) -> int | None:
        """Most tokens of the answer; None without a limit of the caller."""
        return self.sampling.max_tokens


class ChatJob(StreamedJob):
    """Continue a conversation."""

    kind: Literal["chat"] = "chat"
    messages: tuple[Message, ...] = Field(min_length=1, max_length=500)

    @field_validator("messages")
    @classmethod
    def _not_too_much(cls, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if sum(len(message.content) for message in messages) > MAX_DIALOGUE_CHARACTERS:
            raise ValueError(f"may have at most {MAX_DIALOGUE_CHARACTERS:,} characters together")
        return messages


class CodeJob(StreamedJob):
    """Write code. An answer without code, or one that `max_tokens` cut, is a failed attempt.

    Attributes:
        instruction: what the code should do.
        language: the programming language, such as `python`.
        context: existing code.
        file_name: the file that the code is for.
    """

    kind: Literal["code"] = "code"
    instruction: Text
    language: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+#._ -]{1,40}$")]
    context: Annotated[str, StringConstraints(min_length=1, max_length=200_000)] | None = None
    file_name: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\n]*$")] | None = None


class VisionJob(StreamedJob):
    """Answer a question about images.

    Attributes:
        images: data URLs (`data:image/png;base64,...`) of PNG, JPEG, WebP or GIF; an https URL is fetched at submit if its
            host is allowed. The image itself is stored, re-encoded.
        answer_schema: a JSON schema that the answer must conform to; without it the answer is text.
    """

    kind: Literal["vision"] = "vision"
    question: Text
    images: tuple[Image, ...] = Field(min_length=1, max_length=MAX_IMAGES)
    answer_schema: dict[str, Any] | None = None

    @property
    def image_urls(self) -> Mapping[str, str]:
        """Its images by the fields that have them."""
        return {f"images.{index}": image for index, image in enumerate(self.images)}

    def with_image_urls(self, urls: Mapping[str, str]) -> Self:
        """Return the job with other images in these fields."""
        return self.model_copy(update={"images": tuple(urls.values())})

    @field_validator("images", mode="before")
    @classmethod
    def _refuse_in_one_sentence(cls, images: Any) -> Any:
        for index, image in enumerate(images if isinstance(images, list | tuple) else ()):
            # Before pydantic validates: its own error for a text of 100 MB names no way out.
            if isinstance(image, str) and len(image) > MAX_IMAGE_CHARACTERS:
                raise ValueError(f"image {index} is larger than {MAX_IMAGE_BYTES >> 20} MiB; send a smaller one")
            if isinstance(image, str) and not image.startswith(("data:", "https://", "http://")):
                raise ValueError(f"image {index} is neither a data URL (data:image/png;base64,...) nor an https URL")
        return images

    @field_validator("answer_schema")
    @classmethod
    def _can_be_checked(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            check_answer_schema(schema)
        return schema


_MODELS: dict[str, type[Job]] = {}


def register_job(model: type[Job]) -> None:
    """Accept jobs of a kind; the default of the model's field `kind` is its name."""
    _MODELS[model.model_fields["kind"].default] = model
    _adapter.cache_clear()


def job_models() -> tuple[type[Job], ...]:
    """Return the models of all kinds that may be submitted."""
    return tuple(_MODELS.values())


def any_job() -> Any:
    """Return the type of a job of any kind, distinguished by `kind`, for pydantic."""
    return Annotated[Union[job_models()], Field(discriminator="kind")]  # noqa: UP007 - the members are not static


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[Job]:
    return TypeAdapter(any_job())


for _model in (IntentJob, SentimentJob, ChatJob, CodeJob, VisionJob, CompletionJob):
    register_job(_model)


def _refuse_nul(value: Any, path: tuple[str, ...] = ()) -> None:
    """Name the field with a NUL character, which Postgres does not store."""
    if isinstance(value, str) and "\x00" in value:
        raise InvalidJob(
            f"job refused: {'.'.join(path)}: has a NUL character (\\u0000), which cannot be stored; remove it"
        )
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_nul(key, (*path, "key"))
            _refuse_nul(inner, (*path, str(key)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_nul(inner, (*path, str(index)))


def canonical(job: Job) -> bytes:
    """Return what the caller asked for as JSON, without defaults and the idempotency key: equal for equal jobs.

    Raises:
        InvalidJob: it has a character that cannot be stored.
    """
    fields = job.model_dump(mode="json", exclude_defaults=True, exclude={"idempotency_key"})
    request = orjson.dumps({"kind": job.kind, **fields})
    if b"\\u0000" in request or "\x00" in (job.idempotency_key or ""):
        _refuse_nul(job.model_dump(mode="json"))
    return request


def parse_job(value: Job | dict[str, Any] | str | bytes) -> Job:
    """Return a job from a model, a dict or JSON.

    Raises:
        InvalidJob: one sentence that names the field.
    """
    try:
        if isinstance(value, str | bytes):
            return _adapter().validate_json(value)
        return _adapter().validate_python(value)
    except ValidationError as error:
        raise InvalidJob(f"job refused: {all_problems(error, tags=_MODELS)}") from error
