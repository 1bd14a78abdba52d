"""Whole requests: what may be asked as it is, and what is refused by name."""

from typing import Any

import pytest

from schemas.completions import CompletionJob
from schemas.errors import InvalidJob
from schemas.jobs import canonical, parse_job

MESSAGES = [{"role": "user", "content": "你好"}]
RICH: dict[str, Any] = {
    "model": "chatglm3-6b",
    "messages": [
        {"role": "developer", "content": "short"},
        {"role": "user", "content": [{"type": "text", "text": "what?"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
    "n": 2,
    "logprobs": True,
    "top_logprobs": 3,
    "stop": ["x"],
    "seed": 7,
    "temperature": 0,
    "max_completion_tokens": 20,
    "metadata": {"a": "b"},
    "top_k": 5,
    "chat_template_kwargs": {"enable_thinking": False},
    "stream": False,
    "user": None,
}


def completion(**fields: Any) -> CompletionJob:
    job = parse_job({"kind": "completion", "body": {"messages": MESSAGES, **fields}})
    assert isinstance(job, CompletionJob)
    return job


def test_a_body_is_kept_as_it_is() -> None:
    job = completion(**RICH)
    assert job.body == {**RICH}
    assert parse_job(canonical(job)) == job
    assert (job.wanted_model, job.wanted_tokens) == ("chatglm3-6b", 20)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"guided_json": {}}, "body.guided_json: vLLM drops it: write response_format"),
        ({"guided_choice": ["a"]}, "body.guided_choice: vLLM drops it: write structured_outputs.choice"),
        ({"functions": []}, "body.functions: vLLM drops it: write tools"),
        ({"stream": True}, "body.stream: a stream is asked for beside the body"),
        ({"modalities": ["audio"]}, "body.modalities: answers are text"),
        ({"prompt": "x"}, "body.prompt: belongs to another route"),
        ({"priority": -100}, "body.priority: the priority of a job is set beside its body"),
        ({"messages": []}, "body.messages: is empty"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "body.messages.0.role: must be one of"),
        ({"messages": [{"role": "user", "content": 5}]}, "body.messages.0.content: must be text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "body.messages.0.content.0.type: must be one of 'text', 'refusal', 'image_url'",
        ),
        ({"messages": [{"role": "user", "content": "x" * 400_001}]}, "may have at most 400,000 characters"),
        ({"messages": [{"role": "user", "content": "x" * 300_000}] * 2}, "at most 400,000 characters together"),
        ({"temperature": "0"}, "body.temperature: must be a number"),
        ({"n": 0}, "body.n: must be at least 1"),
        ({"n": True}, "body.n: must be a whole number"),
        ({"stop": [""]}, "body.stop.0: is empty"),
        ({"tools": [{"type": "search"}]}, "body.tools.0.type: must be"),
        ({"extra": "\ud800"}, "half a character"),
    ],
)
def test_what_would_be_dropped_or_is_wrong_is_refused_by_name(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        completion(**fields)
    assert reason in refused.value.message
    assert refused.value.message.startswith("job refused: body")


def test_a_refused_field_that_is_null_is_none() -> None:
    assert completion(guided_json=None, functions=None).body["guided_json"] is None


def test_a_body_nested_too_deep_is_refused() -> None:
    deep: Any = {}
    for _ in range(300):
        deep = {"a": deep}
    with pytest.raises(InvalidJob, match="nested too deep"):
        completion(metadata=deep)


def test_images_are_named_by_their_fields_and_can_be_replaced() -> None:
    parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "data:a", "detail": "low"}}]
    job = completion(messages=[*MESSAGES, {"role": "user", "content": parts}])
    (field,) = job.image_urls
    assert field == "body.messages.1.content.1.image_url.url"
    changed = job.with_image_urls({field: "data:b"})
    assert changed.image_urls == {field: "data:b"}
    assert changed.body["messages"][1]["content"][1]["image_url"]["detail"] == "low"
    assert job.image_urls == {field: "data:a"}


def test_too_many_images_are_refused() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:a"}}] * 9
    with pytest.raises(InvalidJob, match="at most 8 images"):
        completion(messages=[{"role": "user", "content": parts}])
