"""JSON schemas that callers bring along: which are taken, and whether an answer obeys one.

jsonschema is imported where it is needed: that takes longer than most commands, and few jobs bring a schema.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

_MAX_BYTES = 20_000
# A caller's regular expression would run in the worker, and a bad one never ends.
_REFUSED = ("pattern", "patternProperties")


def check_answer_schema(schema: dict[str, Any]) -> None:
    """Refuse what cannot be asked of an engine or checked safely.

    Raises:
        ValueError: one clause that says what is wrong with it.
    """
    if len(orjson.dumps(schema)) > _MAX_BYTES:
        raise ValueError(f"may hold at most {_MAX_BYTES:,} bytes")
    for keyword, value in _keywords(schema):
        if keyword in _REFUSED:
            raise ValueError(f"may not use {keyword}; an enum or a length does without a regular expression")
        if keyword in {"$ref", "$dynamicRef"} and not str(value).startswith("#/"):
            raise ValueError(f"{keyword} may only point into the schema itself, such as #/$defs/name")
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        place = ".".join(str(part) for part in error.absolute_path)
        raise ValueError(f"is no JSON schema{f', see {place}' if place else ''}") from error


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every keyword of a schema; names of properties are not keywords."""
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


def obeys(answer: Any, schema: dict[str, Any]) -> bool:
    """Whether an answer is what the schema asks for; a schema that cannot be followed to its end is obeyed by nothing."""
    from referencing.exceptions import Unresolvable

    try:
        return bool(_validator(orjson.dumps(schema)).is_valid(answer))
    except (Unresolvable, RecursionError):
        return False


__all__ = ["check_answer_schema", "obeys"]
