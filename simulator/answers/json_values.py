"""Generates the smallest sensible JSON value that conforms to a schema."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from simulator.answers.patterns import generate_match
from simulator.errors import bad_request

Schema = dict[str, Any] | bool
Chooser = Callable[[Sequence[str], str], str]

_FORMATS = {
    "date": "2026-01-31",
    "time": "09:30:00Z",
    "date-time": "2026-01-31T09:30:00Z",
    "email": "someone@example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "hostname": "example.com",
}
_MAX_DEPTH = 16


class JsonGenerator:
    """Generates values for one schema; `choose` selects among the strings of an `enum`."""

    def __init__(self, root: Schema, choose: Chooser, random: Random, sentence: str) -> None:
        self._root = root
        self._choose = choose
        self._random = random
        self._sentence = sentence

    def generate(self) -> Any:
        """Generate a value that conforms to the root schema.

        Raises:
            RequestRejected: 400, the simulator does not support the schema.

        """
        return self._generate(self._root, "", 0)

    def _generate(self, schema: Schema, name: str, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise bad_request(
                "The simulator generates JSON of at most 16 levels, and this schema has more; limit its recursion."
            )
        if isinstance(schema, bool):
            return {}
        schema = self._resolve(schema, depth)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._choose_member(schema["enum"], name)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        if kind is None:
            kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
        return self._generate_type(str(kind), schema, name, depth)

    def _generate_type(self, kind: str, schema: dict[str, Any], name: str, depth: int) -> Any:
        if kind == "object":
            return self._generate_object(schema, depth)
        if kind == "array":
            return self._generate_array(schema, name, depth)
        if kind == "string":
            return self._generate_string(schema)
        if kind in ("integer", "number"):
            return self._generate_number(schema, kind)
        return None if kind == "null" else self._random.random() < 0.5

    def _resolve(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """Follow `$ref` and the first branch of `anyOf` or `oneOf`, and merge `allOf`."""
        for _ in range(_MAX_DEPTH):
            if "$ref" in schema:
                schema = self._look_up(str(schema["$ref"]))
            elif schema.get("anyOf") or schema.get("oneOf"):
                branches = schema.get("anyOf") or schema.get("oneOf") or []
                # In the deeper half the last branch is used: it ends recursive schemas ("or null").
                schema = branches[-1 if depth > _MAX_DEPTH // 2 else 0]
            elif schema.get("allOf"):
                merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
                for part in schema["allOf"]:
                    part = self._resolve(part, depth)
                    properties = {**merged.get("properties", {}), **part.get("properties", {})}
                    required = [*merged.get("required", []), *part.get("required", [])]
                    merged = {**merged, **part, "properties": properties, "required": required}
                schema = merged
            else:
                return schema
        raise bad_request(
            "The simulator follows at most 16 references in a row, and this schema has more; check it for a cycle."
        )

    def _look_up(self, reference: str) -> dict[str, Any]:
        target: Any = self._root
        for part in reference.removeprefix("#").strip("/").split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            if part:
                target = target.get(part) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise bad_request(f"Grammar error: cannot resolve {reference}")
        return target

    def _choose_member(self, members: list[Any], name: str) -> Any:
        texts = [member for member in members if isinstance(member, str)]
        return self._choose(texts, name) if len(texts) == len(members) else self._random.choice(members)

    def _generate_object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = schema.get("required")
        wanted = [name for name in properties if required is None or name in required]
        if required is not None:
            wanted.extend(name for name in required if name not in properties)
        return {name: self._generate(properties.get(name, {"type": "string"}), name, depth + 1) for name in wanted}

    def _generate_array(self, schema: dict[str, Any], name: str, depth: int) -> list[Any]:
        first = schema.get("prefixItems") or []
        least = int(schema.get("minItems", min(1, int(schema.get("maxItems", 1)))))
        items = [self._generate(one, name, depth + 1) for one in first]
        more = schema.get("items", {"type": "string"})
        while len(items) < least:
            items.append(self._generate(more, name, depth + 1))
        return items

    def _generate_string(self, schema: dict[str, Any]) -> str:
        if "pattern" in schema:
            return generate_match(str(schema["pattern"]), self._random)
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        text = self._sentence
        least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
        text = text if len(text) >= least else text + "." * (least - len(text))
        return text if most is None else text[: int(most)]

    def _generate_number(self, schema: dict[str, Any], kind: str) -> float | int:
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        step = schema.get("multipleOf", 1)
        low = low if low is not None else (0 if high is None or high >= 0 else high - 10)
        high = high if high is not None else low + 10
        if kind == "number" and not isinstance(step, float):
            return round(low + (high - low) * self._random.uniform(0.05, 0.95), 6)
        first = -(-low // step) * step
        first += step * (first == schema.get("exclusiveMinimum"))
        steps = int((high - first) // step) - (high == schema.get("exclusiveMaximum") and (high - first) % step == 0)
        value = first + step * self._random.randint(0, max(0, steps))
        return int(value) if kind == "integer" else float(value)
