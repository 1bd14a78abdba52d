"""What the kinds that answer in free text share: sampling, system prompt, finish reason. Pure."""

from hashlib import sha256
from typing import Any, Literal

import orjson

from pipeline.kinds.requests import Completion, EndpointProfile, RequestTemplate
from schemas.errors import InvalidOutput, OnlyReasoning
from schemas.jobs import Sampling

WORDS_AS_GIVEN = "as-given"  # no words of ours around the caller's


def free_text_template(
    kind: str,
    sampling: Sampling,
    profile: EndpointProfile,
    *,
    max_tokens: int,
    words: str | None = None,
    **parameters: Any,
) -> RequestTemplate:
    """Return the request around a caller's words.

    Args:
        kind: of the job.
        sampling: the caller's.
        profile: of the endpoint.
        max_tokens: the default, if the caller names none.
        words: all words of ours around the caller's; they name the template.
        **parameters: more fields of the request.
    """
    parameters |= {"max_tokens": max_tokens} | sampling.model_dump(exclude_none=True, exclude={"stop"})
    if sampling.stop:
        parameters["stop"] = list(sampling.stop)
    if profile.stop_token_ids:
        parameters["stop_token_ids"] = list(profile.stop_token_ids)
    key = f"{kind}:{orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS).decode()}"
    template_hash = WORDS_AS_GIVEN if words is None else sha256(words.encode()).hexdigest()[:16]
    return RequestTemplate(key=key, prefix=(), parameters=parameters, template_hash=template_hash, free_text=True)


def system_messages(profile: EndpointProfile) -> tuple[dict[str, Any], ...]:
    """Return the model's own system prompt as a message, if it has one."""
    return () if profile.system_prompt is None else ({"role": "system", "content": profile.system_prompt},)


def require_text(completion: Completion) -> str:
    """Return the text of a completion.

    Raises:
        InvalidOutput: it is empty.
        OnlyReasoning: the model thought, and got no further.
    """
    text = completion.text.strip()
    if (not text and completion.reasoning) or (text.startswith("<think>") and "</think>" not in text):
        spent = "" if completion.completion_tokens is None else f" {completion.completion_tokens}"
        raise OnlyReasoning(
            f"all{spent} tokens went into reasoning: raise sampling.max_tokens, or switch reasoning off with "
            "chat_template_kwargs in models.toml"
        )
    if not text:
        raise InvalidOutput("the engine answered with an empty text")
    return completion.text


def finish_reason(completion: Completion) -> Literal["stop", "length"]:
    """Return `length` where `max_tokens` cut the answer, otherwise `stop`."""
    return "length" if completion.finish_reason == "length" else "stop"
