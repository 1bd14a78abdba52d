from __future__ import annotations

import re
from random import Random

import pytest

from simulator.answers.patterns import generate_match
from simulator.errors import RequestRejected


@pytest.mark.parametrize(
    "pattern",
    [
        "abc",
        "[0-9]{3}-[a-z]{2}",
        "(yes|no)",
        "a?b*c+",
        r"\d{2,4}",
        "(?:ab){2}",
        "[^a-z]",
        r"\(x\)",
        "^(正面|负面)$",
        r"[\w]+",
        ".",
    ],
)
def test_a_generated_text_matches_its_pattern(pattern: str) -> None:
    for seed in range(20):
        assert re.fullmatch(pattern, generate_match(pattern, Random(seed)))


def test_an_unsupported_pattern_is_rejected() -> None:
    with pytest.raises(RequestRejected, match="The simulator supports only"):
        generate_match("(?=a)b", Random(0))
    with pytest.raises(RequestRejected, match="Grammar error"):
        generate_match("(", Random(0))
