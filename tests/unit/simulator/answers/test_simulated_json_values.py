from __future__ import annotations

from random import Random
from typing import Any

import pytest

from simulator.answers.json_values import JsonGenerator
from simulator.errors import RequestRejected


def test_an_endlessly_recursive_schema_is_rejected() -> None:
    schema: dict[str, Any] = {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}},
    }
    generator = JsonGenerator(schema, lambda options, _: options[0], Random(0), "x")
    with pytest.raises(RequestRejected, match="16 levels"):
        generator.generate()
