"""The name of a question, under which its answer is found again."""

from typing import Any

from pipeline.kinds.cache_key import cache_key
from pipeline.kinds.requests import CompletionRequest
from tests.unit.pipeline.kinds.completions import build


def request_of(text: str) -> CompletionRequest:
    return build({"kind": "intent", "text": text})[1]


def test_equal_questions_have_equal_keys_and_any_difference_another() -> None:
    given: dict[str, Any] = {
        "tenant": "t",
        "model": "m",
        "revision": "r",
        "simulated": False,
        "request": request_of("退款"),
    }
    key = cache_key(**given)
    assert cache_key(**(given | {"request": request_of("退款")})) == key
    changes: list[dict[str, Any]] = [
        {"tenant": "u"},
        {"model": "n"},
        {"revision": None},
        {"simulated": True},
        {"request": request_of("投诉")},
        {"request": build({"kind": "sentiment", "text": "退款"})[1]},
        {"request": CompletionRequest(given["request"].template, given["request"].messages, truncated=True)},
    ]
    keys = {cache_key(**(given | change)) for change in changes}
    assert len(keys | {key}) == len(changes) + 1
