"""JSON schemas of callers: which are accepted, and whether an answer conforms to one.

jsonschema is imported when it is needed: that takes longer than most commands, and few jobs have a schema.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

_MAX_BYTES = 20_000
# A caller's regular expression would run in the worker, and a bad one never ends; the others take quadratic time.
_REFUSED = ("pattern", "patternProperties", "uniqueItems", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef")
_MAX_PARTS = 1_000
_MAX_DEPTH = 64
_TEXT, _BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"'), re.compile(rb"[][{}]")
_MAX_CHECKS = 2_000_000  # parts of the schema times values of an answer: seconds, not minutes
_REFERENCE = re.compile(r"#/(\$defs|definitions)/[^/]+")


def check_answer_schema(schema: dict[str, Any]) -> None:
    """Refuse a schema that an engine cannot apply or that cannot be checked safely.

    Raises:
        ValueError: one clause that says what is wrong with it.
    """
    try:
        written = orjson.dumps(schema)
    except (TypeError, RecursionError):
        raise ValueError("cannot be written as JSON, or is nested too deep") from None
    if len(written) > _MAX_BYTES:
        raise ValueError(f"may have at most {_MAX_BYTES:,} bytes")
    if _depth(written) > _MAX_DEPTH:
        raise ValueError(f"is nested too deep: it may have {_MAX_DEPTH} brackets and braces inside each other")
    for keyword, value in _keywords(schema):
        if keyword in _REFUSED:
            raise ValueError(f"may not use {keyword}: it could block a worker; use enum, lengths and ranges")
        if keyword == "$ref" and not _REFERENCE.fullmatch(str(value)):
            raise ValueError("$ref may only point into the schema itself, as #/$defs/name")
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        place = ".".join(str(part) for part in error.absolute_path)
        raise ValueError(f"is not a JSON schema{f', see {place}' if place else ''}") from error
    if _parts(schema, schema, {}, ()) > _MAX_PARTS:
        raise ValueError(f"has more than {_MAX_PARTS:,} parts when its references are followed")


def _depth(written: bytes) -> int:
    """Return how deep brackets and braces of valid JSON are nested; those in texts do not count."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(_TEXT.sub(b"", written)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _parts(found: Any, schema: dict[str, Any], known: dict[str, int], path: tuple[str, ...]) -> int:
    """Count the values of a schema with every reference expanded: references to references grow without end."""
    if isinstance(found, list):
        return 1 + sum(_parts(inner, schema, known, path) for inner in found)
    if not isinstance(found, dict):
        return 1
    parts = 1 + sum(
        _parts(inner, schema, known, path) for key, inner in found.items() if key not in {"$defs", "definitions"}
    )
    reference = found.get("$ref")
    if not isinstance(reference, str):
        return parts
    if reference in path:
        raise ValueError(f"may not refer to itself, as {reference[:100]} does")
    if reference not in known:
        known[reference] = _parts(_resolve(reference, schema), schema, known, (*path, reference))
    return parts + known[reference]


def _resolve(reference: str, schema: dict[str, Any]) -> Any:
    _, place, name = reference.split("/")
    defined = schema.get(place)
    name = name.replace("~1", "/").replace("~0", "~")
    if not isinstance(defined, dict) or name not in defined:
        raise ValueError(f"$ref {reference[:100]} points to nothing")
    return defined[name]


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Yield every keyword of a schema; names of properties are not keywords."""
    waiting = [schema]
    while waiting:
        found = waiting.pop()
        if isinstance(found, list):
            waiting += found
        if not isinstance(found, dict):
            continue
        for keyword, value in found.items():
            yield keyword, value
            if keyword in {"properties", "$defs", "definitions", "dependentSchemas"} and isinstance(value, dict):
                waiting += value.values()
            elif keyword not in {"enum", "const", "default", "examples"}:
                waiting.append(value)


@lru_cache(maxsize=64)
def _validator(schema: bytes) -> "Draft202012Validator":
    from jsonschema import Draft202012Validator
    from referencing import Registry

    # An empty registry: without one a reference would be fetched from the network.
    return Draft202012Validator(orjson.loads(schema), registry=Registry())


def conforms(answer: Any, schema: dict[str, Any]) -> bool:
    """Whether an answer conforms to a checked schema; an answer that is too large to check does not."""
    try:
        if _parts(schema, schema, {}, ()) * _values(answer) > _MAX_CHECKS:
            return False
        return bool(_validator(orjson.dumps(schema)).is_valid(answer))
    except RecursionError:
        return False  # no answer that is nested so deep is one to a schema that is not


def _values(answer: Any) -> int:
    inner = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, list) else ()
    return 1 + sum(_values(value) for value in inner)
