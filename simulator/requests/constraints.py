"""Structured outputs: the constraint that a request sets for its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from simulator.errors import RequestRejected, bad_request

_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_FORMAT_TYPES = ("text", "json_object", "json_schema", "structural_tag")
_SCHEMA_TYPES = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer is one of these texts."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JsonText:
    """The answer is JSON; it conforms to the schema when there is one."""

    schema: Any = None


@dataclass(frozen=True, slots=True)
class Pattern:
    """The answer matches the regular expression."""

    regex: str


Constraint = Choice | JsonText | Pattern


def read_constraint(body: dict[str, Any], legacy: bool) -> Constraint | None:
    """Read the constraint of a request body; None when it has none.

    Args:
        body: the request.
        legacy: whether the server is older than 0.12. An older server follows `guided_*` and
            ignores `structured_outputs`; a newer one does the reverse. Neither of them rejects the
            fields of the other.

    Raises:
        RequestRejected: 400, with vLLM's text.

    """
    from_format = _read_response_format(body.get("response_format"))
    if legacy:
        return _read_guided_fields(body) or from_format
    structured = body.get("structured_outputs")
    return from_format if structured is None else _read_structured_outputs(structured)


def check_schema(schema: Any) -> None:
    """Reject a schema that vLLM's grammar compiler rejects: not an object, or an unknown `type`.

    Raises:
        RequestRejected: 400.

    """
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise bad_request(f"Grammar error: schema must be an object or a boolean, got {schema!r}")
    types = schema.get("type")
    for one in types if isinstance(types, list) else [types]:
        if one is not None and one not in _SCHEMA_TYPES:
            raise bad_request(f"Grammar error: Invalid type: {one}")
    children = [
        *_list_values(schema.get("properties")),
        *_list_values(schema.get("$defs")),
        *_list_values(schema.get("definitions")),
    ]
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        children.extend(schema.get(key) or ())
    if "items" in schema:
        children.append(schema["items"])
    for child in children:
        check_schema(child)


def _list_values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


def _read_response_format(wanted: Any) -> Constraint | None:
    if wanted is None:
        return None
    if not isinstance(wanted, dict) or wanted.get("type") not in _FORMAT_TYPES:
        given = wanted.get("type") if isinstance(wanted, dict) else wanted
        raise _schema_error("literal_error", "response_format.type", f"Input should be one of {_FORMAT_TYPES}", given)
    if wanted["type"] == "json_object":
        return JsonText()
    if wanted["type"] == "structural_tag":
        raise bad_request("The simulator does not support structural tags; use json_schema or json_object.")
    if wanted["type"] == "text":
        return None
    holder = wanted.get("json_schema")
    if not isinstance(holder, dict):
        message = "When response_format type is 'json_schema', the 'json_schema' field must be provided."
        raise RequestRejected(400, f"{message} (parameter=response_format)", param="response_format")
    return _read_schema(holder.get("schema", holder.get("json_schema")))


def _read_structured_outputs(structured: Any) -> Constraint:
    if not isinstance(structured, dict):
        # A defect of vLLM that callers can meet, so the simulator has it too.
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
        return _read_choice(value, "structured_outputs.choice")
    if kinds[0] == "json":
        return _read_schema(value)
    if kinds[0] == "regex":
        return Pattern(str(value))
    if kinds[0] == "json_object":
        return JsonText()
    raise bad_request(f"The simulator does not support {kinds[0]}; use choice, json, json_object or regex.")


def _read_guided_fields(body: dict[str, Any]) -> Constraint | None:
    if body.get("guided_choice") is not None:
        return _read_choice(body["guided_choice"], "guided_choice")
    if body.get("guided_json") is not None:
        return _read_schema(body["guided_json"])
    if body.get("guided_regex") is not None:
        return Pattern(str(body["guided_regex"]))
    return None


def _read_choice(value: Any, location: str) -> Choice:
    if not isinstance(value, list):
        raise _schema_error("list_type", location, "Input should be a valid list", value)
    for index, option in enumerate(value):
        if not isinstance(option, str):
            raise _schema_error("string_type", f"{location}.{index}", "Input should be a valid string", option)
    if not value:
        raise bad_request("Choice '[]' cannot be an empty list")
    return Choice(tuple(value))


def _read_schema(value: Any) -> JsonText:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as problem:
            raise bad_request(f"Invalid JSON grammar specification: {problem}") from problem
    if value is None:
        raise bad_request("The JSON schema is missing; give one, or use json_object.")
    check_schema(value)
    return JsonText(value)


def _schema_error(error_type: str, location: str, message: str, given: Any) -> RequestRejected:
    problem = {"type": error_type, "loc": f"body.{location}", "msg": message, "input": str(given)}
    return RequestRejected(400, f"1 validation error:\n  {problem}", "Bad Request", f"body.{location}")
