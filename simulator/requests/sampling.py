"""Sampling parameters of a request, checked as vLLM checks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simulator.errors import RequestRejected, bad_request
from simulator.requests.constraints import Constraint, read_constraint
from simulator.requests.tokens import VOCABULARY_SIZE

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
class SamplingParams:
    """Sampling parameters of one request.

    Attributes:
        top_logprobs: number of alternatives for each token; None when the request asks for no
            logprobs, 0 for the generated token only.
        max_tokens: None when the request sets no limit.
        stop: strings that end the answer.

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
    error_type: str, location: str, message: str, given: Any, context: dict[str, Any] | None = None
) -> RequestRejected:
    """Build a 400 of the schema checks, with their text.

    Args:
        error_type: Pydantic's type of the error.
        location: a path such as `messages.0`; empty for the body.
        message: Pydantic's text.
        given: the rejected value.
        context: Pydantic's `ctx`, where the error has one.

    """
    loc = f"body.{location}" if location else "body"
    problem: dict[str, Any] = {"type": error_type, "loc": loc, "msg": message, "input": describe_value(given)}
    if context:
        problem["ctx"] = context
    return RequestRejected(400, f"1 validation error:\n  {problem}", "Bad Request", loc)


def describe_value(given: Any) -> str:
    """Format a rejected value as vLLM does: a list or an object by its size only."""
    if isinstance(given, list | dict):
        return f"<{type(given).__name__} of {len(given)} items>"
    return str(given)


def read_sampling_params(
    body: dict[str, Any], *, legacy: bool, max_model_len: int, ignores_stream: bool = False, completion: bool = False
) -> SamplingParams:
    """Read and check the sampling parameters of a body.

    Args:
        body: the request.
        legacy: see `read_constraint`.
        max_model_len: context length in tokens; a larger `max_tokens` is rejected.
        ignores_stream: whether the route ignores `stream`, as the batch route does.
        completion: whether `logprobs` is a number, as in /v1/completions, and not a flag.

    Raises:
        RequestRejected: 400.

    """
    fields = _read_scalars(body)
    stream = bool(fields.get("stream")) and not ignores_stream
    _check_stream_options(body, stream)
    top = _read_completion_logprobs(body) if completion else _read_chat_logprobs(body, fields)
    constraint = read_constraint(body, legacy)
    max_tokens = fields.get("max_completion_tokens", fields.get("max_tokens"))
    _check_ranges(fields, max_tokens, max_model_len)
    options = body.get("stream_options") or {}
    return SamplingParams(
        constraint=constraint,
        max_tokens=max_tokens,
        min_tokens=fields.get("min_tokens", 0),
        n=fields.get("n", 1),
        temperature=fields.get("temperature", 1.0),
        seed=fields.get("seed"),
        priority=fields.get("priority", 0),
        top_logprobs=top,
        allowed_token_ids=_read_token_ids(body, "allowed_token_ids"),
        logprob_token_ids=_read_token_ids(body, "logprob_token_ids"),
        stop=_read_stop_strings(body.get("stop")),
        ignore_eos=fields.get("ignore_eos", False),
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        return_token_ids=fields.get("return_token_ids", False),
        truncate_prompt_tokens=fields.get("truncate_prompt_tokens"),
        cache_salt=body.get("cache_salt"),
    )


def _read_scalars(body: dict[str, Any]) -> dict[str, Any]:
    """Return the scalar fields that are present, converted to their types."""
    fields: dict[str, Any] = {}
    for name in body.keys() & _SCALARS:
        value = body[name]
        if value is not None:
            fields[name] = _SCALAR_PARSERS[name](name, value)
    return fields


def _parse_integer(name: str, value: Any) -> int:
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


def _parse_number(name: str, value: Any) -> float:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            message = "Input should be a valid number, unable to parse string as a number"
            raise validation_error("float_parsing", name, message, value) from None
    if not isinstance(value, int | float):
        raise validation_error("float_type", name, "Input should be a valid number", value)
    return float(value)


def _parse_flag(name: str, value: Any) -> bool:
    text = str(value).lower()
    if isinstance(value, bool | int | str) and (text in _TRUE or text in _FALSE):
        return text in _TRUE
    raise validation_error("bool_parsing", name, "Input should be a valid boolean, unable to interpret input", value)


_SCALAR_PARSERS: dict[str, Any] = (
    dict.fromkeys(_INTEGERS, _parse_integer)
    | dict.fromkeys(_NUMBERS, _parse_number)
    | dict.fromkeys(_FLAGS, _parse_flag)
)
_SCALARS = frozenset(_SCALAR_PARSERS)


def _check_stream_options(body: dict[str, Any], stream: bool) -> None:
    if body.get("stream_options") is not None and not stream:
        message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise RequestRejected(400, message, param="stream_options")


def _read_chat_logprobs(body: dict[str, Any], fields: dict[str, Any]) -> int | None:
    wanted = body.get("logprobs")
    wanted = wanted is not None and _parse_flag("logprobs", wanted)
    top = fields.get("top_logprobs")
    if top is not None and top != 0 and not wanted:
        message = "when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)"
        raise RequestRejected(400, message, param="top_logprobs")
    return _check_top_logprobs(top or 0) if wanted else None


def _read_completion_logprobs(body: dict[str, Any]) -> int | None:
    wanted = body.get("logprobs")
    return None if wanted is None else _check_top_logprobs(_parse_integer("logprobs", wanted))


def _check_top_logprobs(top: int) -> int:
    # -1 requests the whole vocabulary, which exceeds the limit too.
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


def _read_token_ids(body: dict[str, Any], name: str) -> tuple[int, ...] | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, list):
        raise validation_error("list_type", name, "Input should be a valid list", value)
    ids = tuple(_parse_integer(f"{name}.{index}", one) for index, one in enumerate(value))
    if not ids:
        raise bad_request(f"{name} is not None and empty!", name, [])
    if any(not 0 <= one < VOCABULARY_SIZE for one in ids):
        raise bad_request(f"{name} contains out-of-vocab token id!", name, list(ids))
    return ids


def _read_stop_strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(str(one) for one in value) if isinstance(value, list) else (str(value),)
