"""Logs in a storm: the first lines of each event, then how many were left out."""

from typing import Any

import structlog

from pipeline.observability.logging import BoundedRate


def test_an_event_that_comes_too_often_is_dropped_and_counted_and_others_are_not() -> None:
    now = 0.0
    bounded = BoundedRate(lambda: now)

    def logged(event: str, method: str = "warning") -> dict[str, Any] | None:
        try:
            return dict(bounded(None, method, {"event": event}))
        except structlog.DropEvent:
            return None

    assert [logged("a request failed") is not None for _ in range(25)] == [True] * 20 + [False] * 5
    assert logged("something else") == {"event": "something else"}
    assert logged("a request failed", "error") == {"event": "a request failed"}
    now = 11.0
    assert logged("a request failed") == {"event": "a request failed", "lines_left_out": 5}
    assert logged("a request failed") == {"event": "a request failed"}
