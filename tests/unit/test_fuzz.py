"""A small share of `make fuzz`."""

import pytest

from tests.support.fuzz import TARGETS, EndpointProfile, fuzz


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_others_write_is_read_or_refused_in_one_sentence(target: EndpointProfile) -> None:
    counts, failures, _ = fuzz(30 if target.name == "call file" else 1_500, 20_261_123, [target])
    assert counts[target.name] >= 1_000
    assert failures == []
