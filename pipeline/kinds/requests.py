"""Engine requests and completions as data, for every kind. Pure."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from pipeline.models import LabelForm

_IMAGE_CHARACTERS = 1_000
_IMAGE_TOKENS = 2_000
_PREFIX_KEY_BYTES = 240


class Constraint(StrEnum):
    """How an endpoint takes the allowed answers."""

    STRUCTURED_OUTPUTS = "structured_outputs"  # vLLM >= 0.12 (0.11 knows both)
    GUIDED = "guided"  # guided_choice and guided_json before; newer servers ignore them silently


@dataclass(frozen=True, slots=True)
class EndpointProfile:
    """What a request is written for.

    Attributes:
        form: how a label is asked for; unused for free text.
        max_model_len: tokens that the endpoint reads.
        stop_token_ids: where the model ends an answer, beside its end-of-text token.
        system_prompt: the model's own first message.
    """

    form: LabelForm
    constraint: Constraint
    max_model_len: int
    stop_token_ids: tuple[int, ...] = ()
    system_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    """All of a request but the caller's words. Requests of equal templates may share a micro-batch.

    Attributes:
        key: identifies the template; equal keys mean equal prefix and parameters.
        prefix: messages before the caller's.
        parameters: fields of the chat request beside model, messages and priority.
        template_hash: names the words around the caller's.
        label_set_hash: names the labels of a classification; None for free text.
        free_text: whether it answers in free text; such rows are sent singly, and streamed if a caller waits.
        decoder: what the kind needs to understand the answer.
        whole_body: whether the kind needs the engine's whole answer.
    """

    key: str
    prefix: tuple[dict[str, str], ...]
    parameters: dict[str, Any]
    template_hash: str
    label_set_hash: str | None = None
    free_text: bool = False
    decoder: Any = None
    whole_body: bool = False
    prefix_json: bytes = field(init=False, default=b"")

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix_json", orjson.dumps(self.prefix)[1:-1])


@dataclass(slots=True, eq=False)
class CompletionRequest:
    """The request of one row: its template and the caller's messages.

    Attributes:
        conversation: the messages array as JSON; the shared prefix is encoded once a template.
    """

    template: RequestTemplate
    messages: tuple[dict[str, Any], ...]
    truncated: bool = False
    conversation: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        own, prefix = orjson.dumps(self.messages), self.template.prefix_json
        self.conversation = b"[" + prefix + b"," + own[1:] if prefix else own

    @property
    def characters(self) -> int:
        """Characters of the caller's messages, by which a micro-batch's prompt tokens are divided; an image counts 1,000."""
        return sum(_characters(message.get("content") or "") for message in self.messages)

    @property
    def tokens(self) -> int:
        """Estimated prompt tokens: three bytes each, which is one Chinese character or most of an English word."""
        images = sum(_images(message.get("content")) for message in self.messages)
        return images * _IMAGE_TOKENS if images else len(self.conversation) // 3

    @property
    def max_tokens(self) -> int:
        """Most tokens of the answer."""
        parameters = self.template.parameters
        return int(parameters.get("max_completion_tokens") or parameters.get("max_tokens") or 0)

    @property
    def deterministic(self) -> bool:
        """Whether the same model gives the same answer again."""
        return self.template.parameters.get("temperature") == 0

    @property
    def prefix_key(self) -> tuple[str, bytes]:
        """A key that is equal for rows with a common prefix, and different for most others."""
        start = len(self.template.prefix_json)
        return self.template.key, self.conversation[start : start + _PREFIX_KEY_BYTES]


def _characters(content: str | list[dict[str, Any]]) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(_IMAGE_CHARACTERS if part["type"] == "image_url" else len(part.get("text") or "") for part in content)


def _images(content: str | list[dict[str, Any]] | None) -> int:
    return sum(part["type"] == "image_url" for part in content) if isinstance(content, list) else 0


@dataclass(slots=True)
class Completion:
    """The answer of an engine to one request.

    Attributes:
        finish_reason: `stop` or `length`.
        first_token: (token text, log probability) pairs of the first position, the sampled one among
            them; empty where the engine gave none.
        reasoning: whether the engine gave tokens of reasoning beside the text.
        prompt_tokens: the engine's count; in a micro-batch a share of its sum.
        engine_seconds: from sent to the whole answer.
        first_token_seconds: from sent to the first token; None where not streamed.
        simulated: the answer itself is marked as a simulator's.
        body: the engine's whole answer, that of a row alone; None where its kind does not need it.
    """

    text: str
    finish_reason: str
    first_token: tuple[tuple[str, float], ...] = ()
    reasoning: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    engine_seconds: float = 0.0
    first_token_seconds: float | None = None
    simulated: bool = False
    body: dict[str, Any] | None = None
