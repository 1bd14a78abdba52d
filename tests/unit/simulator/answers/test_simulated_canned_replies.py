from __future__ import annotations

import pytest

from simulator.answers.canned_replies import write_reply
from simulator.requests.tokens import tokenize


@pytest.mark.parametrize("text", ["你好，我要退款", "my parcel is late", "write a python function", "写一段代码"])
def test_free_text_is_marked_as_simulated_and_short(text: str) -> None:
    reply = write_reply(text, 0)
    assert "模拟" in reply or "simulated" in reply
    assert 15 <= len(tokenize(reply)) <= 80
    assert reply == write_reply(text, 0)
