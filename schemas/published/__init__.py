"""What programs in other languages build on.

The committed copies are docs/schemas/ and a part of docs/submitting.md; `make types` renews them, a test
compares them.

json_schema  one JSON Schema of everything that a caller sends and receives
typescript   TypeScript types, generated from the schema
error_table  a table of all error codes
"""

import json

from schemas.published.error_table import error_table, with_error_table
from schemas.published.json_schema import json_schema
from schemas.published.typescript import typescript

__all__ = ["error_table", "files", "json_schema", "with_error_table"]


def files() -> dict[str, str]:
    """Return the content of docs/schemas/, by file name."""
    document = json_schema()
    head = "// Types of the YYC3 AI-Call pipeline, generated from yyc3.schema.json by `make types`.\n\n"
    return {
        "yyc3.schema.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        "yyc3.d.ts": head + typescript(document["$defs"]),
    }
