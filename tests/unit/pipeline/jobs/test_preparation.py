"""What is hashed of a job, and what is refused before it is stored."""

import pytest

from pipeline.images import ImageSanitizer
from pipeline.images.fetching import Fetcher
from pipeline.jobs.preparation import Preparer, payload_hash
from pipeline.models import load_models
from schemas.errors import InvalidJob
from schemas.job import Job
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


async def test_an_answer_that_leaves_no_room_for_the_prompt_is_refused_with_the_numbers() -> None:
    preparer = Preparer(load_models(), ImageSanitizer(lambda: Fetcher(frozenset())))
    chat = {"kind": "chat", "messages": [{"role": "user", "content": "hi"}], "model": "chatglm3-6b"}
    with pytest.raises(InvalidJob, match=r"sampling.max_tokens: 8,192 .* chatglm3-6b has 8,192 for both"):
        await preparer.prepare(chat | {"sampling": {"max_tokens": 8_192}})
    assert (await preparer.prepare(chat | {"sampling": {"max_tokens": 8_000}})).model == "chatglm3-6b"


@pytest.mark.parametrize(
    ("job", "tenant", "expected"),
    [
        ({"kind": "intent", "text": "a"}, None, "default"),
        ({"kind": "intent", "text": "a"}, "b", "b"),
        ({"kind": "intent", "text": "a", "tenant": "b"}, "b", "b"),
        ({"kind": "intent", "text": "a", "tenant": "b"}, None, "b"),
        (parse_job({"kind": "intent", "text": "a"}), "b", "b"),
        ({"kind": "intent", "text": "a", "tenant": "default"}, "b", None),
        (parse_job({"kind": "intent", "text": "a", "tenant": "c"}), "b", None),
    ],
)
async def test_the_tenant_of_a_batch_is_that_of_its_jobs(
    job: Job | dict[str, object], tenant: str | None, expected: str | None
) -> None:
    preparer = Preparer(load_models(), ImageSanitizer(lambda: Fetcher(frozenset())))
    if expected is None:
        with pytest.raises(InvalidJob, match="tenant: another one than that of the batch"):
            await preparer.prepare(job, tenant)
    else:
        assert (await preparer.prepare(job, tenant)).tenant == expected


def test_a_backslash_that_only_looks_like_a_nul_is_accepted() -> None:
    assert payload_hash(parse_job({"kind": "intent", "text": "\\u0000"}))
