"""Whole requests: the body of an OpenAI chat completion as it is, checked for shape and limits."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, NotRequired, Self

import orjson
from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, field_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from schemas.job import Job
from schemas.limits import MAX_DIALOGUE_CHARACTERS, MAX_IMAGE_CHARACTERS, MAX_IMAGES
from schemas.problems import REFUSED_FIELD

_MOST_MESSAGES = 500
_MOST_TOOLS = 128
MAX_CHOICES = 8
_LONGEST_TEXT = 400_000
_MOST_TOKENS = 1_048_576
_AS_IT_IS = ConfigDict(strict=True, extra="allow")

# Names that vLLM reads no more, or never did: it would drop them in silence, and the answer would be another one.
REFUSED = {
    "guided_json": "vLLM drops it: write response_format, or structured_outputs.json",
    "guided_choice": "vLLM drops it: write structured_outputs.choice",
    "guided_regex": "vLLM drops it: write structured_outputs.regex",
    "guided_grammar": "vLLM drops it: write structured_outputs.grammar",
    "guided_whitespace_pattern": "vLLM drops it: write structured_outputs.whitespace_pattern",
    "guided_decoding_backend": "vLLM drops it: leave it out",
    "functions": "vLLM drops it: write tools",
    "function_call": "vLLM drops it: write tool_choice",
    "audio": "vLLM drops it: answers are text",
    "web_search_options": "vLLM drops it: there is no search",
    "prompt": "belongs to another route: write messages",
    "input": "belongs to another route: write messages",
    "chat_template": "the template is the engine's own; leave it out",
    "priority": "the priority of a job is set beside its body",
    "stream_options": "goes with a stream, which is asked for beside the body",
}
_OF_TEMPLATES = {"chat_template", "tokenize"}
_REFUSED_NAMES = frozenset(REFUSED)
NOT_SENT = frozenset(
    {
        "model",
        "messages",
        "stream",
        "store",
        "metadata",
        "user",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
    }
    | {"modalities", "request_id"}
)
"""Fields of a body that say nothing to an engine, or are said by us."""


def _clean(body: Any) -> Any:
    """Refuse by name what would be dropped in silence."""
    if not isinstance(body, dict):
        return body
    for name in () if _REFUSED_NAMES.isdisjoint(body) else body:
        if name in _REFUSED_NAMES and body[name] is not None:
            raise PydanticCustomError(REFUSED_FIELD, "{name}: {reason}", {"name": name, "reason": REFUSED[name]})
    if not _OF_TEMPLATES.isdisjoint(body.get("chat_template_kwargs") or ()):
        raise PydanticCustomError(REFUSED_FIELD, "chat_template_kwargs: the template is the engine's own; leave it out")
    if body.get("stream"):
        raise PydanticCustomError(REFUSED_FIELD, "stream: a stream is asked for beside the body; leave it out")
    if body.get("modalities") not in (None, ["text"]):
        raise PydanticCustomError(REFUSED_FIELD, "modalities: answers are text; leave it out")
    return body


class _ImageUrl(TypedDict):
    __pydantic_config__ = _AS_IT_IS  # type: ignore[misc]

    url: Annotated[str, StringConstraints(min_length=1, max_length=MAX_IMAGE_CHARACTERS)]


class _ImagePart(TypedDict):
    __pydantic_config__ = _AS_IT_IS  # type: ignore[misc]

    type: Literal["image_url"]
    image_url: _ImageUrl


class _TextPart(TypedDict):
    __pydantic_config__ = _AS_IT_IS  # type: ignore[misc]

    type: Literal["text", "refusal"]
    text: NotRequired[Annotated[str, StringConstraints(max_length=_LONGEST_TEXT)]]


_Part = Annotated[_TextPart | _ImagePart, Field(discriminator="type")]
_Content = (
    Annotated[str, StringConstraints(max_length=_LONGEST_TEXT)]
    | Annotated[list[_Part], Field(min_length=1, max_length=200)]
)


class _Message(TypedDict):
    __pydantic_config__ = _AS_IT_IS  # type: ignore[misc]

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: NotRequired[_Content | None]
    tool_calls: NotRequired[Annotated[list[dict[str, Any]], Field(max_length=_MOST_TOOLS)] | None]
    tool_call_id: NotRequired[str | None]


class _Function(TypedDict):
    __pydantic_config__ = _AS_IT_IS  # type: ignore[misc]

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]


class _Tool(TypedDict):
    __pydantic_config__ = _AS_IT_IS  # type: ignore[misc]

    type: Literal["function"]
    function: _Function


class _ResponseFormat(TypedDict):
    __pydantic_config__ = _AS_IT_IS  # type: ignore[misc]

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: NotRequired[dict[str, Any] | None]


_Penalty = Annotated[float, Field(ge=-2, le=2)] | None
_Tokens = Annotated[int, Field(ge=1, le=_MOST_TOKENS)] | None
_Stop = Annotated[str, StringConstraints(min_length=1, max_length=1_000)]


class _Body(TypedDict):
    __pydantic_config__ = _AS_IT_IS  # type: ignore[misc]

    model: NotRequired[Annotated[str, StringConstraints(min_length=1, max_length=300)] | None]
    messages: Annotated[list[_Message], Field(min_length=1, max_length=_MOST_MESSAGES)]
    max_tokens: NotRequired[_Tokens]
    max_completion_tokens: NotRequired[_Tokens]
    temperature: NotRequired[Annotated[float, Field(ge=0, le=2)] | None]
    top_p: NotRequired[Annotated[float, Field(gt=0, le=1)] | None]
    n: NotRequired[Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None]
    stop: NotRequired[_Stop | Annotated[list[_Stop], Field(max_length=16)] | None]
    seed: NotRequired[int | None]
    presence_penalty: NotRequired[_Penalty]
    frequency_penalty: NotRequired[_Penalty]
    logprobs: NotRequired[bool | None]
    top_logprobs: NotRequired[Annotated[int, Field(ge=0, le=20)] | None]
    prompt_logprobs: NotRequired[Annotated[int, Field(ge=0, le=20)] | None]
    logit_bias: NotRequired[dict[str, float] | None]
    tools: NotRequired[Annotated[list[_Tool], Field(min_length=1, max_length=_MOST_TOOLS)] | None]
    tool_choice: NotRequired[Literal["none", "auto", "required"] | dict[str, Any] | None]
    parallel_tool_calls: NotRequired[bool | None]
    response_format: NotRequired[_ResponseFormat | None]
    reasoning_effort: NotRequired[str | None]
    structured_outputs: NotRequired[dict[str, Any] | None]
    chat_template_kwargs: NotRequired[dict[str, Any] | None]


_BODY = TypeAdapter(_Body)


class UsageMode(StrEnum):
    """How the usage of a completion is counted."""

    EXACT = "exact"  # it goes alone
    APPROXIMATE = "approximate"  # it may share a request


def check_body(body: Any) -> bool:
    """Check the body of a completion; returns whether it has images.

    Raises:
        ValidationError, PydanticCustomError, ValueError: it is none.
    """
    _clean(body)
    _BODY.validate_python(body)
    try:
        orjson.dumps(body)
    except (TypeError, RecursionError, ValueError):
        raise ValueError("cannot be written as JSON: it is nested too deep, or has half a character") from None
    characters = images = 0
    for message in body["messages"]:
        content = message.get("content")
        if isinstance(content, str):
            characters += len(content)
        elif content:
            images += sum(part["type"] == "image_url" for part in content)
            characters += sum(len(part.get("text") or "") for part in content)
    if characters > MAX_DIALOGUE_CHARACTERS:
        raise ValueError(f"messages may have at most {MAX_DIALOGUE_CHARACTERS:,} characters together")
    if images > MAX_IMAGES:
        raise ValueError(f"messages may have at most {MAX_IMAGES} images together")
    return images > 0


class CompletionJob(Job):
    """A chat completion of OpenAI, answered with the engine's whole body.

    Attributes:
        body: what would be sent to /v1/chat/completions. `model` in it is an entry of models.toml, or the name that its engine
            serves it under; `model` of the job wins.
        usage_mode: `exact` sends it alone, so that its usage is its own; `approximate` lets it share a request with rows of
            equal parameters, whose prompt tokens are then divided by length. With tools, or n above 1, it always goes alone.
    """

    kind: Literal["completion"] = "completion"
    body: dict[str, Any]
    usage_mode: UsageMode = UsageMode.EXACT

    @field_validator("body", mode="before")
    @classmethod
    def _is_good(cls, body: Any) -> Any:
        check_body(body)
        return body

    @property
    def wanted_model(self) -> str | None:
        """The model of the job, else that of the body."""
        return self.model or self.body.get("model")

    @property
    def wanted_tokens(self) -> int | None:
        """Most tokens of the answer; None if the engine decides."""
        found: int | None = self.body.get("max_completion_tokens") or self.body.get("max_tokens")
        return found

    @property
    def image_urls(self) -> Mapping[str, str]:
        """Its images by the fields that have them."""
        plain = all(isinstance(message.get("content"), str) for message in self.body["messages"])
        return {} if plain else dict(images_of(self.body))

    def with_image_urls(self, urls: Mapping[str, str]) -> Self:
        """Return the job with other images in these fields."""
        messages = []
        for place, message in enumerate(self.body["messages"]):
            if isinstance(message.get("content"), list):
                parts = [
                    part | {"image_url": part["image_url"] | {"url": urls[_field(place, index)]}}
                    if part["type"] == "image_url"
                    else part
                    for index, part in enumerate(message["content"])
                ]
                message = message | {"content": parts}
            messages.append(message)
        return self.model_copy(update={"body": self.body | {"messages": messages}})


def _field(message: int, part: int) -> str:
    return f"body.messages.{message}.content.{part}.image_url.url"


def images_of(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the images of a body, each with the field that has it."""
    for place, message in enumerate(body["messages"]):
        content = message.get("content")
        for index, part in enumerate(content if isinstance(content, list) else ()):
            if part["type"] == "image_url":
                yield _field(place, index), part["image_url"]["url"]
