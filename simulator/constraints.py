"""What a request says its answer must look like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from simulator.errors import RequestRejected, bad_request
from simulator.json_values import check_schema

_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_FORMAT_TYPES = ("text", "json_object", "json_schema", "structural_tag")


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these texts."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JsonText:
    """JSON, by a schema where there is one."""

    schema: Any = None


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text the regular expression matches."""

    regex: str


Constraint = Choice | JsonText | Pattern


def constraint_of(body: dict[str, Any], legacy: bool) -> Constraint | None:
    """The constraint of a request body; None when it has none.

    Args:
        body: the request.
        legacy: the server is older than 0.12: it obeys `guided_*` and ignores `structured_outputs`; later ones do the
            reverse. Neither complains about the other's fields.

    Raises:
        RequestRejected: 400, as vLLM words it.

    """
    from_format = _of_response_format(body.get("response_format"))
    if legacy:
        return _of_guided(body) or from_format
    structured = body.get("structured_outputs")
    return from_format if structured is None else _of_structured(structured)


def _of_response_format(wanted: Any) -> Constraint | None:
    if wanted is None:
        return None
    if not isinstance(wanted, dict) or wanted.get("type") not in _FORMAT_TYPES:
        given = wanted.get("type") if isinstance(wanted, dict) else wanted
        raise _schema_error("literal_error", "response_format.type", f"Input should be one of {_FORMAT_TYPES}", given)
    if wanted["type"] == "json_object":
        return JsonText()
    if wanted["type"] == "structural_tag":
        raise bad_request("The simulator knows no structural tags.")
    if wanted["type"] == "text":
        return None
    holder = wanted.get("json_schema")
    if not isinstance(holder, dict):
        message = "When response_format type is 'json_schema', the 'json_schema' field must be provided."
        raise RequestRejected(400, f"{message} (parameter=response_format)", param="response_format")
    return _json(holder.get("schema", holder.get("json_schema")))


def _of_structured(structured: Any) -> Constraint:
    if not isinstance(structured, dict):
        # A defect of the server that callers can meet, so it is kept.
        raise RequestRejected(
            500, f"{type(structured).__name__!r} object has no attribute 'get'", "InternalServerError"
        )
    kinds = [kind for kind in _KINDS if structured.get(kind) is not None]
    if not kinds:
        given = {kind: None for kind in _KINDS}
        raise bad_request(
            f"You must use one kind of structured outputs constraint but none are specified: {given}",
        )
    if len(kinds) > 1:
        raise bad_request(
            "You can only use one kind of constraints for structured outputs ('json', 'regex' or 'choice')."
        )
    value = structured[kinds[0]]
    if kinds[0] == "choice":
        return _choice(value, "structured_outputs.choice")
    if kinds[0] == "json":
        return _json(value)
    if kinds[0] == "regex":
        return Pattern(str(value))
    if kinds[0] == "json_object":
        return JsonText()
    raise bad_request(f"The simulator knows no {kinds[0]}; it follows choice, json, json_object and regex.")


def _of_guided(body: dict[str, Any]) -> Constraint | None:
    if body.get("guided_choice") is not None:
        return _choice(body["guided_choice"], "guided_choice")
    if body.get("guided_json") is not None:
        return _json(body["guided_json"])
    if body.get("guided_regex") is not None:
        return Pattern(str(body["guided_regex"]))
    return None


def _choice(value: Any, place: str) -> Choice:
    if not isinstance(value, list):
        raise _schema_error("list_type", place, "Input should be a valid list", value)
    for number, option in enumerate(value):
        if not isinstance(option, str):
            raise _schema_error("string_type", f"{place}.{number}", "Input should be a valid string", option)
    if not value:
        raise bad_request("Choice '[]' cannot be an empty list")
    return Choice(tuple(value))


def _json(value: Any) -> JsonText:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as problem:
            raise bad_request(f"Invalid JSON grammar specification: {problem}") from problem
    if value is None:
        raise bad_request("The json schema is missing.")
    check_schema(value)
    return JsonText(value)


def _schema_error(kind: str, place: str, message: str, given: Any) -> RequestRejected:
    problem = {"type": kind, "loc": f"body.{place}", "msg": message, "input": str(given)}
    return RequestRejected(400, f"1 validation error:\n  {problem}", "Bad Request", f"body.{place}")
