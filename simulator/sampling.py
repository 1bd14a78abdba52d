"""The fields of a request that decide how an answer is written, checked as vLLM checks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simulator.constraints import Constraint, constraint_of
from simulator.errors import RequestRejected, bad_request
from simulator.tokens import VOCABULARY_SIZE

MAX_LOGPROBS = 20

_INTEGERS = (
    "max_tokens",
    "max_completion_tokens",
    "n",
    "priority",
    "seed",
    "top_logprobs",
    "min_tokens",
    "top_k",
    "truncate_prompt_tokens",
)
_NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_FLAGS = ("stream", "ignore_eos", "return_token_ids", "echo", "add_generation_prompt")
_TRUE = ("true", "1", "yes", "on", "t", "y")
_FALSE = ("false", "0", "no", "off", "f", "n")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the answers of one request are written.

    Attributes:
        top_logprobs: alternatives shown for each token; None when no logprobs are wanted, 0 for the written token only.
        max_tokens: None when the request names no limit.
        stop: texts that end the answer.

    """

    constraint: Constraint | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    n: int = 1
    temperature: float = 1.0
    seed: int | None = None
    priority: int = 0
    top_logprobs: int | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    logprob_token_ids: tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    return_token_ids: bool = False
    truncate_prompt_tokens: int | None = None
    cache_salt: str | None = None


def validation_error(
    kind: str, place: str, message: str, given: Any, extra: dict[str, Any] | None = None
) -> RequestRejected:
    """A 400 of the schema checks, worded like theirs; `place` is a path such as `messages.0`, empty for the body."""
    loc = f"body.{place}" if place else "body"
    problem: dict[str, Any] = {"type": kind, "loc": loc, "msg": message, "input": describe(given)}
    if extra:
        problem["ctx"] = extra
    return RequestRejected(400, f"1 validation error:\n  {problem}", "Bad Request", loc)


def describe(given: Any) -> str:
    """How vLLM shows a value that it refuses: large things by their size only."""
    if isinstance(given, list | dict):
        return f"<{type(given).__name__} of {len(given)} items>"
    return str(given)


def read_sampling(
    body: dict[str, Any], *, legacy: bool, max_model_len: int, ignores_stream: bool = False, completion: bool = False
) -> Sampling:
    """Read and check the sampling fields of a body.

    Args:
        body: the request.
        legacy: see `constraint_of`.
        max_model_len: context in tokens; more output than that is refused.
        ignores_stream: the batch route drops `stream` without a word.
        completion: `logprobs` is a number there, not a flag.

    Raises:
        RequestRejected: 400.

    """
    fields = _typed(body)
    stream = bool(fields.get("stream")) and not ignores_stream
    _check_stream_options(body, stream)
    top = _logprobs_of_completion(body) if completion else _logprobs_of_chat(body, fields)
    constraint = constraint_of(body, legacy)
    max_tokens = fields.get("max_completion_tokens", fields.get("max_tokens"))
    _check_ranges(fields, max_tokens, max_model_len)
    options = body.get("stream_options") or {}
    return Sampling(
        constraint=constraint,
        max_tokens=max_tokens,
        min_tokens=fields.get("min_tokens", 0),
        n=fields.get("n", 1),
        temperature=fields.get("temperature", 1.0),
        seed=fields.get("seed"),
        priority=fields.get("priority", 0),
        top_logprobs=top,
        allowed_token_ids=_token_ids(body, "allowed_token_ids"),
        logprob_token_ids=_token_ids(body, "logprob_token_ids"),
        stop=_stops(body.get("stop")),
        ignore_eos=fields.get("ignore_eos", False),
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        return_token_ids=fields.get("return_token_ids", False),
        truncate_prompt_tokens=fields.get("truncate_prompt_tokens"),
        cache_salt=body.get("cache_salt"),
    )


def _typed(body: dict[str, Any]) -> dict[str, Any]:
    """The scalar fields that are present, as their types."""
    fields: dict[str, Any] = {}
    for name in body.keys() & _SCALARS:
        value = body[name]
        if value is not None:
            fields[name] = _SCALAR_READERS[name](name, value)
    return fields


def _integer(name: str, value: Any) -> int:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            message = "Input should be a valid integer, unable to parse string as an integer"
            raise validation_error("int_parsing", name, message, value) from None
    if isinstance(value, float) and not value.is_integer():
        message = "Input should be a valid integer, got a number with a fractional part"
        raise validation_error("int_from_float", name, message, value)
    if not isinstance(value, int | float):
        raise validation_error("int_type", name, "Input should be a valid integer", value)
    return int(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            message = "Input should be a valid number, unable to parse string as a number"
            raise validation_error("float_parsing", name, message, value) from None
    if not isinstance(value, int | float):
        raise validation_error("float_type", name, "Input should be a valid number", value)
    return float(value)


def _flag(name: str, value: Any) -> bool:
    text = str(value).lower()
    if isinstance(value, bool | int | str) and (text in _TRUE or text in _FALSE):
        return text in _TRUE
    raise validation_error("bool_parsing", name, "Input should be a valid boolean, unable to interpret input", value)


_SCALAR_READERS: dict[str, Any] = (
    dict.fromkeys(_INTEGERS, _integer) | dict.fromkeys(_NUMBERS, _number) | dict.fromkeys(_FLAGS, _flag)
)
_SCALARS = frozenset(_SCALAR_READERS)


def _check_stream_options(body: dict[str, Any], stream: bool) -> None:
    if body.get("stream_options") is not None and not stream:
        message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise RequestRejected(400, message, param="stream_options")


def _logprobs_of_chat(body: dict[str, Any], fields: dict[str, Any]) -> int | None:
    wanted = body.get("logprobs")
    wanted = wanted is not None and _flag("logprobs", wanted)
    top = fields.get("top_logprobs")
    if top is not None and top != 0 and not wanted:
        message = "when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)"
        raise RequestRejected(400, message, param="top_logprobs")
    return _checked_top(top or 0) if wanted else None


def _logprobs_of_completion(body: dict[str, Any]) -> int | None:
    wanted = body.get("logprobs")
    return None if wanted is None else _checked_top(_integer("logprobs", wanted))


def _checked_top(top: int) -> int:
    # -1 asks for the whole vocabulary, which is over the limit too.
    top = VOCABULARY_SIZE if top < 0 else top
    if top > MAX_LOGPROBS:
        raise bad_request(
            f"Requested sample logprobs of {top}, which is greater than max allowed: {MAX_LOGPROBS}", "logprobs", top
        )
    return top


def _check_ranges(fields: dict[str, Any], max_tokens: int | None, max_model_len: int) -> None:
    if fields.get("n", 1) < 1:
        raise bad_request(f"n must be at least 1, got {fields['n']}.")
    temperature = fields.get("temperature")
    if temperature is not None and temperature < 0:
        raise bad_request(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if temperature is not None and temperature > 2:
        raise bad_request(f"temperature must be in [0, 2], got {temperature}.", "temperature", temperature)
    top_p = fields.get("top_p")
    if top_p is not None and not 0 < top_p <= 1:
        raise bad_request(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    if fields.get("top_k", 0) < -1:
        raise bad_request(f"top_k must be 0 (disable), or at least 1, got {fields['top_k']}.")
    if max_tokens is not None:
        _check_max_tokens(max_tokens, fields.get("min_tokens", 0), max_model_len)
    if temperature == 0 and fields.get("n", 1) > 1:
        raise bad_request(f"n must be 1 when using greedy sampling, got {fields['n']}.")


def _check_max_tokens(max_tokens: int, min_tokens: int, max_model_len: int) -> None:
    if max_tokens < 1:
        raise bad_request(f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens", max_tokens)
    if max_tokens > max_model_len:
        raise bad_request(
            f"max_tokens={max_tokens} cannot be greater than max_model_len={max_model_len}. "
            "Please request fewer output tokens.",
            "max_tokens",
            max_tokens,
        )
    if min_tokens > max_tokens:
        raise bad_request(f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}.")


def _token_ids(body: dict[str, Any], name: str) -> tuple[int, ...] | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, list):
        raise validation_error("list_type", name, "Input should be a valid list", value)
    ids = tuple(_integer(f"{name}.{place}", one) for place, one in enumerate(value))
    if not ids:
        raise bad_request(f"{name} is not None and empty!", name, [])
    if any(not 0 <= one < VOCABULARY_SIZE for one in ids):
        raise bad_request(f"{name} contains out-of-vocab token id!", name, list(ids))
    return ids


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(str(one) for one in value) if isinstance(value, list) else (str(value),)
