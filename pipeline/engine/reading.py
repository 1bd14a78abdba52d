"""Response bodies to answers. Shapes as recorded from vLLM 0.32; unknown fields are ignored."""

from collections.abc import Sequence
from typing import Any

import orjson

from pipeline.kinds.asking import Answer, Ask
from schemas.errors import EngineError, EngineFailed, InvalidOutput


def loaded(body: bytes) -> dict[str, Any]:
    """The JSON object of a 200."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidOutput("the engine answered with something that is not JSON") from error
    if not isinstance(value, dict):
        raise InvalidOutput("the engine answered with JSON that is no object")
    return value


def first_token(choice: dict[str, Any]) -> tuple[tuple[tuple[str, float], ...], int | None]:
    """Alternatives of the first position, the sampled one among them, and how many tokens there are."""
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        return (), None
    head = content[0]
    alternatives = [(head["token"], head["logprob"])]
    alternatives.extend((entry["token"], entry["logprob"]) for entry in head.get("top_logprobs") or ())
    return tuple(alternatives), len(content)


def check_finish(finish_reason: str | None) -> str:
    """Refuse answers that the engine broke off (vLLM does on SIGTERM, with HTTP 200 and half a text)."""
    if finish_reason in {"abort", "error"}:
        raise EngineFailed("the engine broke off in the middle of the answer")
    return finish_reason or "stop"


def _answer(choice: dict[str, Any], prompt_tokens: int | None, completion_tokens: int | None, seconds: float) -> Answer:
    finish = check_finish(choice.get("finish_reason"))
    alternatives, tokens = first_token(choice)
    return Answer(
        text=choice["message"].get("content") or "",
        finish_reason=finish,
        first_token=alternatives,
        prompt_tokens=prompt_tokens,
        completion_tokens=tokens if completion_tokens is None else completion_tokens,
        engine_seconds=seconds,
    )


def read_single(body: bytes, seconds: float) -> Answer:
    """The answer of a plain chat completion."""
    value = loaded(body)
    try:
        usage = value.get("usage") or {}
        return _answer(value["choices"][0], usage.get("prompt_tokens"), usage.get("completion_tokens"), seconds)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InvalidOutput("the engine's answer is not a chat completion") from error


def read_batch(body: bytes, asks: Sequence[Ask], seconds: float) -> list[Answer | EngineError]:
    """One answer or failed try a row, in the order of the asks.

    The engine reports one sum of prompt tokens; it is shared out by the length of the rows' own text, so that the shares
    add up to the sum.
    """
    value = loaded(body)
    try:
        usage = value.get("usage") or {}
        shares = _shares(usage.get("prompt_tokens"), [ask.characters for ask in asks])
        completions = _shares(usage.get("completion_tokens"), [1] * len(asks))
        rows: list[Answer | EngineError] = [InvalidOutput("the engine left this row out of its answer") for _ in asks]
        for choice in value["choices"]:
            index = choice["index"]
            _, tokens = first_token(choice)
            try:
                rows[index] = _answer(choice, shares[index], completions[index] if tokens is None else tokens, seconds)
            except EngineError as error:
                rows[index] = error
        return rows
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InvalidOutput("the engine's answer is not a batch of chat completions") from error


def _shares(total: int | None, weights: Sequence[int]) -> list[int | None]:
    if total is None:
        return [None] * len(weights)
    # Every row carries the same prefix; only the rest differs. Rounding is carried on, so the sum holds.
    whole = sum(weight + 1 for weight in weights)
    shares: list[int | None] = []
    given = passed = 0
    for weight in weights:
        passed += weight + 1
        upto = total * passed // whole
        shares.append(upto - given)
        given = upto
    return shares


__all__ = ["check_finish", "loaded", "read_batch", "read_single"]
