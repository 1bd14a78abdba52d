"""TypeScript types from a JSON Schema."""

import pytest

from schemas.published.typescript import typescript


def test_typescript_has_the_types_of_the_schema() -> None:
    made = typescript(
        {
            "Pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
            "Thing": {
                "type": "object",
                "description": "One thing.\n\nIts comment ends */ here.",
                "properties": {
                    "kind": {"const": "thing"},
                    "mood": {"enum": ["good", "bad"], "type": "string"},
                    "no-name": {"anyOf": [{"$ref": "#/$defs/Pair"}, {"type": "null"}]},
                    "many": {"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "boolean"}]}},
                    "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
                    "anything": {"description": "any value"},
                },
                "required": ["kind"],
            },
        }
    )
    assert made == (
        "export type Pair = [string, number];\n\n"
        "/**\n * One thing.\n *\n * Its comment ends * / here.\n */\n"
        "export type Thing = {\n"
        '  kind: "thing";\n'
        '  mood?: "good" | "bad";\n'
        '  "no-name"?: Pair | null;\n'
        "  many?: Array<number | boolean>;\n"
        "  counts?: Record<string, number>;\n"
        "  /** any value */\n"
        "  anything?: unknown;\n"
        "};\n"
    )
    with pytest.raises(ValueError, match="no TypeScript is known for allOf"):
        typescript({"Thing": {"allOf": []}})
