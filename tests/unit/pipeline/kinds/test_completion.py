"""Completion: the body goes to the engine as it is, and the engine's whole body comes back."""

from typing import Any

import pytest

from pipeline import kinds
from pipeline.kinds import Completion
from schemas.errors import InvalidOutput
from tests.unit.pipeline.kinds.completions import build

MESSAGES = [{"role": "user", "content": "hi"}]


def body_of(*messages: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    choices = [{"index": at, "message": message, "finish_reason": finish} for at, message in enumerate(messages)]
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": {}}


def answered(body: dict[str, Any], **fields: Any) -> Any:
    job, request = build({"kind": "completion", "body": {"messages": MESSAGES, **fields}})
    return kinds.decode(job, request, Completion(text="", finish_reason="stop", body=body))


def test_the_request_has_the_body_but_what_we_say_and_what_is_null() -> None:
    given = {
        "messages": MESSAGES,
        "model": "x",
        "stream": False,
        "metadata": {"a": "b"},
        "user": "u",
        "seed": None,
        "temperature": 0,
        "top_k": 3,
    }
    _, request = build({"kind": "completion", "body": given})
    assert request.template.parameters == {"temperature": 0, "top_k": 3}
    assert request.messages == tuple(MESSAGES)
    assert request.deterministic


def test_rows_go_singly_unless_approximate_usage_lets_them_share() -> None:
    def alone(usage_mode: str, **fields: Any) -> bool:
        _, request = build({"kind": "completion", "usage_mode": usage_mode, "body": {"messages": MESSAGES, **fields}})
        return request.template.free_text

    assert alone("exact")
    assert not alone("approximate")
    assert alone("approximate", n=2)
    assert alone("approximate", tools=[{"type": "function", "function": {"name": "f"}}])
    keys = {
        build({"kind": "completion", "usage_mode": "approximate", "body": {"messages": MESSAGES, **fields}})[
            1
        ].template.key
        for fields in ({"temperature": 0}, {"temperature": 1}, {"temperature": 0, "metadata": {"a": "b"}})
    }
    assert len(keys) == 2, "other sampling never shares a request; metadata is not sent"


def test_the_whole_body_comes_back() -> None:
    body = body_of({"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"})
    result = answered(body, n=2)
    assert result.body == body
    assert kinds.headline(result) == "a"


@pytest.mark.parametrize(
    ("body", "fields", "reason"),
    [
        (body_of({"role": "assistant", "content": "a"}), {"n": 2}, "another number of choices"),
        (body_of({"role": "assistant", "content": ""}), {}, "empty text"),
        (body_of({"role": "assistant", "content": "a"}), {"tool_choice": "required"}, "called no tool"),
        (body_of({"role": "assistant", "content": "a"}), {"response_format": {"type": "json_object"}}, "not JSON"),
    ],
)
def test_a_dropped_constraint_or_a_missing_choice_fails_the_attempt(
    body: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidOutput, match=reason):
        answered(body, **fields)


def test_tool_calls_and_reasoning_are_answers() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert answered(body_of({"role": "assistant", "content": None, "tool_calls": calls}), tool_choice="required")
    assert answered(body_of({"role": "assistant", "content": None, "reasoning": "hm"}, finish="length"))


def test_an_image_is_estimated_and_text_beside_it_is_not_counted_as_one() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 90_000}}
    _, with_image = build({"kind": "completion", "body": {"messages": [{"role": "user", "content": [image]}]}})
    _, parts = build(
        {"kind": "completion", "body": {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}}
    )
    assert with_image.tokens == 2_000
    assert parts.tokens < 100
