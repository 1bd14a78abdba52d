"""A line is a job of OpenAI's form or ours; both may stand in one file."""

from typing import Any

import orjson
import pytest

from pipeline.batches.lines import RefusedLine, is_within, parse_line, shared_fields
from pipeline.batches.reading import Line
from pipeline.images import ImageSanitizer
from pipeline.jobs.preparation import Preparer
from pipeline.models import load_models
from schemas.batches import BatchSettings

BODY = {"model": "chatglm3-6b", "messages": [{"role": "user", "content": "hi"}]}
OPENAI = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": BODY}
SETTINGS = BatchSettings()


def line(value: Any) -> Line:
    return Line(1, value if isinstance(value, bytes) else orjson.dumps(value))


def test_both_forms_are_read() -> None:
    assert parse_line(line(OPENAI), SETTINGS) == ("r1", BODY, None)
    custom_id, _, job = parse_line(line({"custom_id": "s1", "kind": "sentiment", "text": "好"}), SETTINGS)
    assert (custom_id, job) == ("s1", {"kind": "sentiment", "text": "好", "priority": 0})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{broken", "is not JSON"),
        ([1], "is JSON, but not an object"),
        ({**OPENAI, "custom_id": None}, "custom_id: is missing"),
        ({**OPENAI, "custom_id": ""}, "custom_id: must be text of 1 to 512 characters"),
        ({**OPENAI, "custom_id": 7}, "custom_id: must be text"),
        ({**OPENAI, "custom_id": "x" * 513}, "custom_id: must be text"),
        (b'{"custom_id":"a\\u0000b"}', "custom_id: has a NUL character"),
        ({"custom_id": "a"}, "body: is missing; or write kind"),
        ({**OPENAI, "url": "/v1/embeddings"}, "url: must be /v1/chat/completions"),
        ({**OPENAI, "method": "GET"}, "method: must be POST"),
        ({**OPENAI, "extra": 1}, "extra: is not a field here"),
        ({"custom_id": "a", "kind": "intent", "idempotency_key": "k"}, "idempotency_key: in a batch only the batch"),
    ],
)
def test_a_line_that_is_no_job_says_which_field(value: Any, reason: str) -> None:
    with pytest.raises(RefusedLine) as refused:
        parse_line(line(value), SETTINGS)
    assert reason in refused.value.reason


def test_a_line_that_cannot_be_read_says_why() -> None:
    with pytest.raises(RefusedLine, match="is longer"):
        parse_line(Line(1, b"", "is longer than 32 MiB"), SETTINGS)


def test_settings_apply_to_both_forms() -> None:
    settings = BatchSettings(priority=5, model="codegeex4-all-9b", cache=False, usage_mode="approximate")
    assert shared_fields(settings) == {
        "priority": 5,
        "model": "codegeex4-all-9b",
        "cache": False,
        "usage_mode": "approximate",
    }
    _, _, job = parse_line(line({"custom_id": "c", "kind": "chat", "messages": [], "priority": 2}), settings)
    assert job == {"kind": "chat", "messages": [], "priority": 2, "model": "codegeex4-all-9b", "cache": False}
    assert shared_fields(SETTINGS) == {}


def test_a_sample_is_the_same_each_time_and_of_the_size_that_was_asked_for() -> None:
    taken = [number for number in range(100_000) if is_within(Line(number, b""), 0.01)]
    assert taken == [number for number in range(100_000) if is_within(Line(number, b""), 0.01)]
    assert 800 < len(taken) < 1_200
    assert sum(number < 50_000 for number in taken) > 300, "spread over the file"


@pytest.mark.parametrize(
    "shared", [{}, {"priority": 3}, {"model": "codegeex4-all-9b", "cache": False, "usage_mode": "approximate"}]
)
@pytest.mark.parametrize("tenant", ["default", "sales"])
async def test_the_fast_way_of_a_plain_completion_makes_the_same_row(shared: dict[str, Any], tenant: str) -> None:
    preparer = Preparer(load_models(), ImageSanitizer(lambda: pytest.fail("no image is fetched")))
    body = {**BODY, "temperature": 0, "max_tokens": 5, "stop": ["a"]}
    fast = preparer.plain_completion(body, tenant, shared)
    slow = await preparer.prepare({"kind": "completion", "body": body, **shared}, tenant, with_hash=False)
    assert fast is not None
    assert orjson.loads(fast.request) == orjson.loads(slow.request)
    fast.request = slow.request
    assert fast == slow


@pytest.mark.parametrize(
    "body",
    [
        {**BODY, "model": "none"},
        {**BODY, "max_tokens": 8_192},
        {**BODY, "guided_json": {}},
        {"messages": BODY["messages"]},
        {**BODY, "messages": [{"role": "user", "content": "a\0b"}]},
        {**BODY, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:a"}}]}]},
        "text",
    ],
)
def test_what_needs_a_closer_look_goes_the_slower_way(body: Any) -> None:
    preparer = Preparer(load_models(), ImageSanitizer(lambda: pytest.fail("no image is fetched")))
    assert preparer.plain_completion(body, "default", {}) is None
