"""The examples of docs/submitting.md."""

import json
import re
from typing import Any

from tests.support.sandbox import ROOT

PAGE = ROOT / "docs" / "submitting.md"


def examples(fence: str) -> list[str]:
    """What stands in the blocks that are opened with this word, or these."""
    found: list[str] = re.findall(rf"^```{re.escape(fence)}\n(.*?)^```$", text(), re.DOTALL | re.MULTILINE)
    assert found, f"docs/submitting.md has no example of {fence}"
    return found


def json_examples(what: str) -> list[dict[str, Any]]:
    """Jobs, results or replies."""
    return [json.loads(example) for example in examples(f"json {what}")]


def fences() -> set[str]:
    """The words that open blocks."""
    return set(re.findall(r"^```(.+)$", text(), re.MULTILINE))


def text() -> str:
    """The page as it is committed."""
    return PAGE.read_text(encoding="utf-8")
