"""A call for tests."""

from typing import Any

CALL: dict[str, Any] = {
    "call_id": "c1",
    "extra": "ignored",
    "turns": [
        {"speaker": "agent", "text": "喂"},
        {"speaker": "customer", "text": "我要退款"},
        {"speaker": "customer", "text": "快点"},
    ],
}
