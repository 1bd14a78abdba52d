"""What every kind speaks: an ask goes to an engine, an answer comes back. Pure data."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from pipeline.models import LabelForm

_PICTURE_CHARACTERS = 1_000
_PICTURE_TOKENS = 2_000
_OPENING_BYTES = 240


class Constraint(StrEnum):
    """How the endpoint wants to be told the allowed answers."""

    STRUCTURED_OUTPUTS = "structured_outputs"  # vLLM >= 0.12 (0.11 knows both)
    GUIDED = "guided"  # guided_choice and guided_json before; newer servers ignore them silently


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is written for.

    Attributes:
        form: how a label is asked for; of no matter where the answer is free text.
        context_tokens: how much the endpoint reads.
        stop_token_ids: where the model ends an answer, beside its end-of-text token.
        system_prompt: what the model wants to be told first.
    """

    form: LabelForm
    constraint: Constraint
    context_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    system_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """All of a request but the caller's words. Asks of an equal shape may share one micro-batch.

    Attributes:
        key: identifies the shape; equal keys mean equal prefix and parameters.
        prefix: messages before the caller's, JSON without the closing bracket and comma handling left to `Ask`.
        parameters: fields of the chat request beside model, messages and priority.
        template_hash: names the words around the caller's.
        reading: whatever the kind needs to read the answer.
    """

    key: str
    prefix: tuple[dict[str, str], ...]
    parameters: dict[str, Any]
    template_hash: str
    streamed: bool = False
    reading: Any = None
    prefix_json: bytes = field(init=False, default=b"")

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix_json", orjson.dumps(self.prefix)[1:-1])


@dataclass(slots=True, eq=False)
class Ask:
    """One row's request: its shape and the caller's messages.

    Attributes:
        conversation: the messages array as JSON; the shared prefix is encoded once a shape, not once a row.
    """

    shape: Shape
    messages: tuple[dict[str, Any], ...]
    truncated: bool = False
    conversation: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        own, before = orjson.dumps(self.messages), self.shape.prefix_json
        self.conversation = b"[" + before + b"," + own[1:] if before else own

    @property
    def characters(self) -> int:
        """Characters of the caller's messages, to share out a micro-batch's prompt tokens; a picture counts as many."""
        return sum(_characters(message["content"]) for message in self.messages)

    @property
    def tokens(self) -> int:
        """Tokens of the prompt, estimated: three bytes each, a Chinese character or most of an English word."""
        pictures = sum(_PICTURE_TOKENS for message in self.messages if not isinstance(message["content"], str))
        return pictures or len(self.conversation) // 3

    @property
    def longest_answer_tokens(self) -> int:
        """Tokens of the answer at most."""
        return int(self.shape.parameters.get("max_tokens", 0))

    @property
    def deterministic(self) -> bool:
        """Whether the same model gives the same answer again."""
        return self.shape.parameters.get("temperature") == 0

    @property
    def opening(self) -> tuple[str, bytes]:
        """What rows that share a long prefix have in common, and others do not."""
        start = len(self.shape.prefix_json)
        return self.shape.key, self.conversation[start : start + _OPENING_BYTES]


def _characters(content: str | list[dict[str, Any]]) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(part["text"]) if part["type"] == "text" else _PICTURE_CHARACTERS for part in content)


@dataclass(slots=True)
class Answer:
    """What an engine said to one ask.

    Attributes:
        first_token: (token text, log probability) pairs of the first position, the sampled one among them; empty where
            the engine gave none.
        prompt_tokens: the engine's count; in a micro-batch a share of its sum.
        engine_seconds: from sent to the whole answer.
        first_token_seconds: from sent to the first token; None where not streamed.
        simulated: the answer says itself that a simulator made it.
    """

    text: str
    finish_reason: str
    first_token: tuple[tuple[str, float], ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    engine_seconds: float = 0.0
    first_token_seconds: float | None = None
    simulated: bool = False


__all__ = ["Answer", "Ask", "Constraint", "Shape", "Target"]
