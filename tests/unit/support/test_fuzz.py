"""A small share of `make fuzz`."""

import pytest

from tests.support.fuzz import TARGETS, Target, fuzz


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_broken_input_is_accepted_or_refused_in_one_sentence(target: Target) -> None:
    counts, failures, _ = fuzz({"call file": 30, "arguments": 150}.get(target.name, 1_500), 20_261_123, [target])
    assert counts[target.name] >= (150 if target.name == "arguments" else 1_000)
    assert failures == []
