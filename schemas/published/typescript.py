"""TypeScript types from a JSON Schema: as much of draft 2020-12 as pydantic writes."""

import json
from collections.abc import Callable
from textwrap import wrap
from typing import Any

_WIDTH = 116
_SIMPLE = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
    "array": "unknown[]",
    "object": "Record<string, unknown>",
}


def typescript(definitions: dict[str, Any]) -> str:
    """Return a type for each definition, with its description; lengths, ranges and patterns have no counterpart.

    Raises:
        ValueError: a schema has no known keyword.
    """
    return "\n".join(_declaration(name, schema) for name, schema in definitions.items())


def _declaration(name: str, schema: dict[str, Any]) -> str:
    written = _type(schema, "")
    space = "" if written.startswith("\n") else " "
    return f"{_comment(schema, '')}export type {name} ={space}{written};\n"


def _comment(schema: dict[str, Any], indent: str) -> str:
    """Return a description as a comment for the lines before, empty if there is none."""
    paragraphs = schema.get("description", "").replace("*/", "* /").splitlines()
    lines = [line for paragraph in paragraphs for line in wrap(paragraph, _WIDTH) or [""]]
    if len(lines) < 2:
        return f"{indent}/** {lines[0]} */\n" if lines else ""
    return f"{indent}/**\n" + "".join(f"{indent} * {line}".rstrip() + "\n" for line in lines) + f"{indent} */\n"


def _type(schema: dict[str, Any], indent: str) -> str:
    for keyword, write in _WRITERS:
        if keyword in schema:
            return write(schema, indent)
    if set(schema) - {"title", "description", "default"}:
        raise ValueError(f"no TypeScript is known for {', '.join(schema)}")
    return "unknown"


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _object(schema: dict[str, Any], indent: str) -> str:
    """Properties; beside them a choice of more, where only some combinations are taken."""
    deeper, required, lines = indent + "  ", schema.get("required", ()), ["{\n"]
    for name, made in schema["properties"].items():
        key = name if name.isidentifier() else _literal(name)
        lines.append(
            f"{_comment(made, deeper)}{deeper}{key}{'' if name in required else '?'}: {_type(made, deeper)};\n"
        )
    written = "".join(lines) + indent + "}"
    return f"{written} & ({_union(schema, indent)})" if "oneOf" in schema else written


def _union(schema: dict[str, Any], indent: str) -> str:
    members = schema.get("anyOf") or schema["oneOf"]
    if any("const" in member and "description" in member for member in members):
        deeper = indent + "  "
        return "".join(f"\n{_comment(member, deeper)}{deeper}| {_type(member, deeper)}" for member in members)
    return " | ".join(dict.fromkeys(_type(member, indent) for member in members))


def _array(schema: dict[str, Any], indent: str) -> str:
    made = _type(schema["items"], indent)
    return f"{made}[]" if made.isidentifier() else f"Array<{made}>"


def _record(schema: dict[str, Any], indent: str) -> str:
    made = schema["additionalProperties"]
    return f"Record<string, {_type({} if made is True else made, indent)}>"


_WRITERS: tuple[tuple[str, Callable[[dict[str, Any], str], str]], ...] = (
    ("$ref", lambda schema, _: str(schema["$ref"].rpartition("/")[2])),
    ("const", lambda schema, _: _literal(schema["const"])),
    ("enum", lambda schema, _: " | ".join(_literal(value) for value in schema["enum"])),
    ("properties", _object),
    ("anyOf", _union),
    ("oneOf", _union),
    ("additionalProperties", _record),
    ("prefixItems", lambda schema, indent: f"[{', '.join(_type(item, indent) for item in schema['prefixItems'])}]"),
    ("items", _array),
    ("type", lambda schema, _: _SIMPLE[schema["type"]]),
)
