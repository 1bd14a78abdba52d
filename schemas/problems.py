"""What is wrong with a value, in our words: each field once, its reason, and a hint where a mistake is common.

A reason never repeats what was given: it may be the words of a caller.
"""

import re
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

REFUSED_FIELD = "refused_field"
"""The type of an error of ours whose message begins with the name of a field inside the one that is looked at."""

_MOST = 5
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MEMBER = re.compile(
    r"constrained-str|list\[.*\]|dict\[.*\]|literal\[.*\]"
)  # how pydantic names the types that a field may have
_OF_OUTER = {"too_short", "string_type"}
_LINE_ONE = re.compile(r" at line 1 column (\d+)$")
_TIME = "must be a time with its zone, such as 2026-11-22T03:00+08:00"
_REASONS = {
    "missing": "is missing",
    "extra_forbidden": "is not a field here",
    "string_type": "must be text",
    "string_unicode": "has half a character (a lone surrogate), which is no text; was it cut?",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "timezone_aware": _TIME,
    "datetime_type": _TIME,
    "datetime_parsing": _TIME,
    "datetime_from_date_parsing": _TIME,
    "string_too_short": "must have at least {min_length:,} characters",
    "string_too_long": "may have at most {max_length:,} characters",
    "too_short": "must have at least {min_length:,} entries",
    "too_long": "may have at most {max_length:,} entries",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "may be at most {le}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be one of {expected}",
    "enum": "must be one of {expected}",
    "union_tag_not_found": "is missing; one of {expected}",
    "union_tag_invalid": "must be one of {expected}",
    "json_invalid": "is not JSON: {error}",
}
_PATTERNS = {
    "tenant": "must have 1 to 64 letters, digits, dots, dashes or underlines of ASCII",
    "language": "must be the name of a programming language, such as python",
}
_OF_SAMPLING = {"temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty"}
_FORMS = {
    "labels": 'write {"name": "..."}',
    "turns": 'write {"speaker": "customer", "text": "..."}',
    "messages": 'write {"role": "user", "content": "..."}',
}
_MESSAGES = 'write messages: [{"role": "user", "content": "..."}]'
_BELONGS = {
    **dict.fromkeys(_OF_SAMPLING, "it belongs into sampling"),
    "max_tokens": "it belongs into sampling",
    "max_completion_tokens": "write sampling.max_tokens",
    "prompt": _MESSAGES,
    "message": _MESSAGES,
    "type": "write kind",
    "task": "write kind",
    "input": "write text, or messages for a chat",
    "content": "write text, or messages for a chat",
    "text": "write messages for a chat, instruction for code, question for vision",
    "utterance": "write text",
    "image": "write images, a list",
    "image_url": "write images, a list of data URLs",
    "key": "write idempotency_key",
    "timeout": "write deadline, a time; how long a caller waits is said where it waits",
    "metadata": "write tags, texts by name",
    "response_format": "write answer_schema, with kind vision",
    "tools": "tools are not supported",
    "functions": "tools are not supported",
    "n": "one answer a job; submit it several times",
}


def problems(error: ValidationError, tags: Collection[str] = ()) -> list[str]:
    """Return every problem of a validation as one clause, `field: reason`.

    Args:
        error: of pydantic.
        tags: names of union members, which pydantic puts in front of the field; a person knows which
            member they sent.
    """
    found = error.errors(include_url=False, include_input=True)
    for one in found:
        one["loc"] = tuple(part for part in one["loc"] if not (isinstance(part, str) and _MEMBER.fullmatch(part)))
    within = [one["loc"] for one in found]
    clauses = [_clause(one, tags) for one in found if not (one["type"] in _OF_OUTER and _has_inner(one["loc"], within))]
    return list(dict.fromkeys(clauses))


def first_problem(error: ValidationError, tags: Collection[str] = ()) -> str:
    """Return the first problem as one clause."""
    return problems(error, tags)[0]


def all_problems(error: ValidationError, tags: Collection[str] = ()) -> str:
    """Return every problem in one sentence; of many, how many more there are."""
    found = problems(error, tags)
    more = [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
    return "; ".join([*found[:_MOST], *more])


def _has_inner(place: tuple[int | str, ...], others: list[tuple[int | str, ...]]) -> bool:
    """Whether something in this field is refused as well: pydantic counts the list without it, and tries other types of it."""
    return any(len(other) > len(place) and other[: len(place)] == place for other in others)


def _clause(one: ErrorDetails, tags: Collection[str]) -> str:
    parts = [_field_name(part) for part in one["loc"]]
    if parts and parts[0] in tags:
        parts = parts[1:]
    if one["type"].startswith("union_tag"):
        parts.append(str(one.get("ctx", {}).get("discriminator", "")).strip("'"))
    field, reason = ".".join(parts), _reason(one, parts[-1] if parts else "", tags)
    if one["type"] == REFUSED_FIELD:
        return f"{field}.{reason}"  # it names the field within
    return f"{field}: {reason}" if field else reason


def _reason(one: ErrorDetails, field: str, tags: Collection[str]) -> str:
    kind, context = one["type"], dict(one.get("ctx", {}))
    if kind == "string_pattern_mismatch" and field in _PATTERNS:
        return _PATTERNS[field]
    if kind.startswith("union_tag"):
        context["expected"] = context.get("expected_tags") or ", ".join(map(repr, tags))
    if kind not in _REASONS:
        return one["msg"].removeprefix("Value error, ")
    if context.get("min_length") == 1 and kind in {"string_too_short", "too_short"}:
        return "is empty"
    if kind == "string_unicode" and isinstance(one.get("input"), bytes):
        kind = "string_type"
    if kind == "json_invalid":
        context["error"] = _LINE_ONE.sub(r" at character \1", str(context["error"]))
    reason = _REASONS[kind].format(**context)
    parent = str(one["loc"][-2]) if len(one["loc"]) > 1 else ""
    hint = _hint(kind, field, one.get("input"), parent)
    return f"{reason}; {hint}" if hint else reason


def _hint(kind: str, field: str, given: Any, parent: str) -> str | None:
    if kind == "model_type":
        return _FORMS.get(parent)
    if kind == "extra_forbidden":
        return _BELONGS.get(field)
    if kind in {"tuple_type", "list_type"} and field in {"messages", "turns"}:
        return _MESSAGES if field == "messages" else 'write turns: [{"speaker": "customer", "text": "..."}]'
    if kind == "string_type" and field == "content" and isinstance(given, list):
        return "parts of content are not read: put the text here, and images into a job of kind vision"
    if kind == "missing" and field == "speaker":
        return "write customer or agent, and their words as text"
    return None


def _field_name(part: int | str) -> str:
    """Return a step of the path to a field. The name of an unknown field is the caller's: shown if it looks like a name."""
    text = str(part)
    return text if _NAME.fullmatch(text) else "(a field whose name cannot be shown)"
