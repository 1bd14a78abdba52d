"""What the kinds that answer in free text share. Streamed from the engine, so that the time to the first token is known."""

from hashlib import sha256
from typing import Any

import orjson

from pipeline.kinds.requests import Answer, Shape, Target
from schemas.errors import InvalidOutput
from schemas.jobs import Sampling

_AS_GIVEN = "as-given"  # nothing of ours stands around the caller's words


def writing_shape(
    kind: str, sampling: Sampling, target: Target, *, max_tokens: int, words: str | None = None, **parameters: Any
) -> Shape:
    """The request around a caller's words.

    `max_tokens` is for callers who say nothing of it; `words` are everything of ours that stands around theirs, they name the
    template; `parameters` are more fields of the request.
    """
    parameters |= {"max_tokens": max_tokens} | sampling.model_dump(exclude_none=True, exclude={"stop"})
    if sampling.stop:
        parameters["stop"] = list(sampling.stop)
    if target.stop_token_ids:
        parameters["stop_token_ids"] = list(target.stop_token_ids)
    key = f"{kind}:{orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS).decode()}"
    template_hash = _AS_GIVEN if words is None else sha256(words.encode()).hexdigest()[:16]
    return Shape(key=key, prefix=(), parameters=parameters, template_hash=template_hash, streamed=True)


def opening(target: Target) -> tuple[dict[str, Any], ...]:
    """The model's own system prompt as a message, if it has one."""
    return () if target.system_prompt is None else ({"role": "system", "content": target.system_prompt},)


def written(answer: Answer) -> str:
    """The text of an answer.

    Raises:
        InvalidOutput: there is none.
    """
    if not answer.text.strip():
        raise InvalidOutput("the engine answered with nothing")
    return answer.text


__all__ = ["opening", "writing_shape", "written"]
