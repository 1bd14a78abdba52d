"""Vision: images before a question, and answers that conform to a schema."""

import pytest

from pipeline import kinds
from pipeline.kinds import Completion, Constraint
from schemas.errors import InvalidOutput, OnlyReasoning
from schemas.results import VisionResult, parse_result
from tests.unit.pipeline.kinds.completions import build


def test_images_come_before_the_question_and_a_schema_in_the_engines_form() -> None:
    schema = {"type": "object"}
    given = {"kind": "vision", "question": "what?", "images": ["data:a", "data:b"], "answer_schema": schema}
    _, new = build(given)
    (message,) = new.messages
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]
    assert new.template.parameters["structured_outputs"] == {"json": schema}
    _, old = build(given, constraint=Constraint.GUIDED)
    assert old.template.parameters["guided_json"] == schema
    assert new.characters > len("what?")


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ('{"a": 1', "length", "cut off"),
        ("{a}", "stop", "not JSON"),
        ('{"a": NaN}', "stop", "NaN, which is not a number"),
        ('{"a": 0.1234567890123456789}', "stop", "more digits"),
        ('{"a": 1e999}', "stop", "more digits"),
        ('{"a": "\\ud800"}', "stop", "half a character"),
        ("9" * 5_000, "stop", "not JSON"),
        ('{"a": "x"}', "stop", "does not conform"),
        ("[1]", "stop", "does not conform"),
        ('{"a": ' * 2_000, "stop", "nested deeper"),
        (" ", "stop", "empty text"),
    ],
)
def test_an_answer_outside_the_callers_schema_fails_the_attempt(text: str, finish_reason: str, reason: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    job, request = build({"kind": "vision", "question": "?", "images": ["data:a"], "answer_schema": schema})
    with pytest.raises(InvalidOutput, match=reason):
        kinds.decode(job, request, Completion(text=text, finish_reason=finish_reason))


def test_an_answer_nested_deeper_than_can_be_stored_fails_the_attempt() -> None:
    job, request = build({"kind": "vision", "question": "?", "images": ["data:a"], "answer_schema": {}})
    with pytest.raises(InvalidOutput, match="nested"):
        kinds.decode(job, request, Completion(text="[" * 300 + "]" * 300, finish_reason="stop"))


def test_a_number_is_kept_digit_for_digit() -> None:
    job, request = build({"kind": "vision", "question": "?", "images": ["data:a"], "answer_schema": {}})
    text = '{"order": 98765432109876543210, "price": 0.10, "power": -1.5e3}'
    result = kinds.decode(job, request, Completion(text=text, finish_reason="stop"))
    stored = parse_result(result.model_dump_json().encode())
    assert isinstance(stored, VisionResult)
    assert stored.text == text
    assert stored.answer == {"order": 98765432109876543210, "price": 0.1, "power": -1500.0}


@pytest.mark.parametrize("text", ["", "<think>hm"])
def test_tokens_that_all_went_into_reasoning_are_not_asked_for_again(text: str) -> None:
    for kind, given in (
        ("chat", {"messages": [{"role": "user", "content": "hi"}]}),
        ("code", {"instruction": "x", "language": "python"}),
        ("vision", {"question": "?", "images": ["data:a"]}),
        ("intent", {"text": "x"}),
        ("sentiment", {"text": "x"}),
    ):
        job, request = build({"kind": kind, **given})
        thought = Completion(text=text, finish_reason="length", reasoning=True, completion_tokens=512)
        with pytest.raises(OnlyReasoning, match=r"chat_template_kwargs") as raised:
            kinds.decode(job, request, thought)
        assert not raised.value.retryable


def test_a_property_may_be_named_pattern_and_parts_may_be_shared() -> None:
    schema = {
        "properties": {"pattern": {"$ref": "#/$defs/short"}, "uniqueItems": {"$ref": "#/$defs/short"}},
        "$defs": {"short": {"type": "string", "maxLength": 3}},
        "required": ["pattern"],
    }
    job, request = build({"kind": "vision", "question": "?", "images": ["data:a"], "answer_schema": schema})
    assert kinds.decode(job, request, Completion(text='{"pattern": "a"}', finish_reason="stop")) is not None
    with pytest.raises(InvalidOutput, match="does not conform"):
        kinds.decode(job, request, Completion(text='{"pattern": "abcd"}', finish_reason="stop"))
