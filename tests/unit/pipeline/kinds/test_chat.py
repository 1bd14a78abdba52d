"""Chat: the caller's messages and parameters pass through."""

import pytest

from pipeline import kinds
from schemas.errors import InvalidOutput
from schemas.results import ChatResult
from tests.unit.pipeline.kinds.completions import build, completion

CHAT = {
    "kind": "chat",
    "messages": [{"role": "user", "content": "hi"}],
    "sampling": {"max_tokens": 5, "stop": ["x"], "seed": 3},
}


def test_chat_passes_the_callers_parameters_on() -> None:
    _, request = build(CHAT)
    assert request.template.parameters == {"max_tokens": 5, "stop": ["x"], "seed": 3}
    assert request.template.free_text


def test_an_empty_reply_fails_the_attempt() -> None:
    job, request = build(CHAT)
    assert kinds.decode(job, request, completion("yes")) == ChatResult(text="yes", finish_reason="length")
    with pytest.raises(InvalidOutput):
        kinds.decode(job, request, completion("  "))
