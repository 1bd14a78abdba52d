"""The examples of docs/submitting.md."""

import json
import re
from typing import Any

from tests.support.sandbox import ROOT

PAGE = ROOT / "docs" / "submitting.md"


def examples(fence: str) -> list[str]:
    """Return the contents of the blocks that open with these words."""
    found: list[str] = re.findall(rf"^```{re.escape(fence)}\n(.*?)^```$", text(), re.DOTALL | re.MULTILINE)
    assert found, f"docs/submitting.md has no example of {fence}"
    return found


def json_examples(what: str) -> list[dict[str, Any]]:
    """Return the examples of `job`, `result` or `reply`."""
    return [json.loads(example) for example in examples(f"json {what}")]


def fences() -> set[str]:
    """Return the words that open blocks."""
    return set(re.findall(r"^```(.+)$", text(), re.MULTILINE))


def text() -> str:
    """Return the page."""
    return PAGE.read_text(encoding="utf-8")
