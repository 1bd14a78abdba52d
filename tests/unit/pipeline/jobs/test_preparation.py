"""What is hashed of a job, and what is refused before it is stored."""

import pytest

from pipeline.jobs.preparation import payload_hash
from schemas.errors import InvalidJob
from schemas.jobs import parse_job


def test_a_payload_hash_ignores_key_priority_deadline_and_stream() -> None:
    job = {"kind": "intent", "text": "a", "idempotency_key": "1"}
    same = payload_hash(parse_job(job | {"idempotency_key": "2"}))
    assert payload_hash(parse_job(job)) == same
    for change in ({"text": "b"}, {"tenant": "b"}, {"tags": {"a": "b"}}, {"labels": [{"name": "x"}]}):
        assert payload_hash(parse_job(job | change)) != same
    assert payload_hash(parse_job(job | {"priority": 1, "deadline": "2031-05-01T12:00:00Z"})) == same
    chat = {"kind": "chat", "messages": [{"role": "user", "content": "a"}]}
    assert payload_hash(parse_job(chat | {"stream": True})) == payload_hash(parse_job(chat))


@pytest.mark.parametrize(
    ("job", "field"),
    [
        ({"kind": "intent", "text": "a\x00b"}, "text"),
        ({"kind": "intent", "text": "a", "tags": {"t": "\x00"}}, "tags.t"),
        ({"kind": "intent", "text": "a", "idempotency_key": "k\x00"}, "idempotency_key"),
        ({"kind": "chat", "messages": [{"role": "user", "content": "\x00"}]}, "messages.0.content"),
    ],
)
def test_a_character_that_cannot_be_stored_is_refused_with_its_field(job: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidJob, match=rf"{field}: has a NUL"):
        payload_hash(parse_job(job))


def test_a_backslash_that_only_looks_like_a_nul_is_accepted() -> None:
    assert payload_hash(parse_job({"kind": "intent", "text": "\\u0000"}))
