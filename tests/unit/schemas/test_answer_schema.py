"""JSON schemas of callers: which are refused, and why."""

import pytest

from schemas.answer_schema import conforms
from schemas.errors import InvalidJob
from schemas.jobs import parse_job


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "thing"}, "is not a JSON schema, see type"),
        ({"properties": {"a": {"pattern": "(a+)+$"}}}, "may not use pattern"),
        ({"patternProperties": {"a": {}}}, "may not use patternProperties"),
        ({"$ref": "https://example.com/schema"}, "may only point into the schema itself"),
        ({"$ref": "#"}, "may only point into the schema itself"),
        ({"$ref": "#/$defs/a"}, "points to nothing"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "may not refer to itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}, "may not refer to itself"),
        ({"type": "array", "uniqueItems": True}, "may not use uniqueItems"),
        ({"examples": [{"pattern": "^(a+)+$"}], "$ref": "#/examples/0"}, "may only point into"),
        ({"$ref": "#/$defs/a/enum/0", "$defs": {"a": {"enum": [{"pattern": "a"}]}}}, "may only point into"),
        ({"maximum": 10**20}, "cannot be written as JSON"),
        (
            {
                "$ref": "#/$defs/n0",
                "$defs": {f"n{i}": {"allOf": [{"$ref": f"#/$defs/n{i + 1}"}] * 2} for i in range(40)} | {"n40": {}},
            },
            "more than 1,000 parts",
        ),
        ({"description": "x" * 30_000}, "at most 20,000 bytes"),
    ],
)
def test_a_schema_that_cannot_be_checked_safely_is_refused(schema: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidJob, match=reason):
        parse_job({"kind": "vision", "question": "?", "images": ["data:a"], "answer_schema": schema})


def nested(levels: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string", "description": "[[[["}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


def test_a_schema_may_be_nested_as_deep_as_it_can_be_checked() -> None:
    job = {"kind": "vision", "question": "?", "images": ["data:a"]}
    assert parse_job({**job, "answer_schema": nested(31)})
    for levels in (32, 60, 121, 400):
        with pytest.raises(InvalidJob, match="nested too deep"):
            parse_job({**job, "answer_schema": nested(levels)})


def test_an_answer_that_is_nested_deeper_than_can_be_checked_does_not_conform() -> None:
    answer: list[object] = []
    for _ in range(900):
        answer = [answer]
    assert not conforms(answer, {"type": "array"})


def test_an_answer_that_is_too_large_to_check_does_not_conform() -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    assert conforms([1] * 1_000, schema)
    assert not conforms([1, "x"], schema)
    assert not conforms([1] * 500_000, schema)
