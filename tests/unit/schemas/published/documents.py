"""The published schema, and what it accepts."""

from typing import Any

from jsonschema import Draft202012Validator

from schemas.published import json_schema

DOCUMENT = json_schema()
DEFINITIONS: dict[str, Any] = DOCUMENT["$defs"]
RENEW = "run: make types"


def accepts(definition: str, value: Any) -> bool:
    """Whether a value is valid under a definition of the published schema."""
    schema = {"$ref": f"#/$defs/{definition}", "$defs": DEFINITIONS}
    return bool(Draft202012Validator(schema).is_valid(value))
