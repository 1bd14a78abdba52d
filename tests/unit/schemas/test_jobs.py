"""What is refused of a job, in one sentence that names the field."""

import pytest

from schemas.errors import InvalidJob
from schemas.jobs import parse_job


@pytest.mark.parametrize(
    "labels", [[{"name": "A"}, {"name": "a"}], [{"name": "buy", "word": "order"}, {"name": "undo", "word": "Order"}]]
)
def test_labels_that_do_not_differ_are_refused(labels: list[dict[str, str]]) -> None:
    with pytest.raises(InvalidJob, match="two labels have the same"):
        parse_job({"kind": "intent", "text": "x", "labels": labels})


def test_a_refusal_never_repeats_the_callers_words() -> None:
    with pytest.raises(InvalidJob) as raised:
        parse_job({"kind": "intent", "text": "SECRET" * 10_000})
    assert "SECRET" not in raised.value.message
