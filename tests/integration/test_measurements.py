"""What is measured of jobs and endpoints: columns of their outcomes, samples, and the queue display."""

import json
from typing import Any

import pytest

from schemas.ids import JobId
from schemas.results import IntentResult, JobState, SentimentResult
from tests.support.sandbox import Sandbox, wait_for
from tests.support.small_engine import MAX_NUM_SEQS, chat, running


def shown_at_work(sandbox: Sandbox) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the bulk queue and its endpoint as `yyc3 queues` shows them, if one sample shows both at work."""
    lines = [json.loads(line) for line in sandbox.yyc3("queues", "--json").stdout.splitlines()]
    (queue,) = [line for line in lines if line.get("queue") == "chatglm3-6b.bulk"]
    for sample in (line for line in lines if "limit_rows" in line and line["lane"] == "bulk"):
        at_work = (queue["in_flight"], queue["jobs_per_second"], sample["engine_running"], sample["tokens_per_second"])
        if all(at_work):
            return queue, sample
    return None


def test_measurements_of_jobs_and_endpoints_are_stored_and_shown(sandbox: Sandbox) -> None:
    with running(sandbox, speed=1) as (client, simulator):
        jobs = [{"kind": "intent", "text": f"我要退款 {i}"} for i in range(64)] + [chat(i) for i in range(500)]
        batch = client.submit_many(jobs)
        client.submit_many([chat(i) for i in range(1_000, 1_200)])  # waits behind: a worker claims four chunks
        shown = wait_for(lambda: shown_at_work(sandbox), "queues that show a bulk queue at work", 60)
        assert shown is not None
        queue, sample = shown
        assert queue["seconds_to_empty"] > 0
        assert sample["endpoint"] == simulator.url
        assert sample["state"] == "closed"
        table = sandbox.yyc3("queues").stdout
        assert "empty in" in table
        assert f"chatglm3-6b at {simulator.url}" in table
        for _ in client.watch_batch(batch.batch_id):
            pass
        intents = [outcome for outcome in client.batch_outcomes(batch.batch_id) if outcome.kind == "intent"]
        for outcome in intents:
            assert outcome.endpoint == simulator.url
            assert outcome.timings.queue_wait_seconds is not None
            assert outcome.timings.batch_wait_seconds is not None
            assert outcome.timings.engine_seconds is not None
            assert outcome.timings.total_seconds is not None
        assert max(outcome.batch_rows or 0 for outcome in intents) == MAX_NUM_SEQS // 8


INTENT: dict[str, Any] = {"kind": "intent", "text": "东西我不要了，我要退款。"}
SENTIMENT: dict[str, Any] = {"kind": "sentiment", "text": "太差了，等了一个小时没人管，气死我了！"}
CHAT: dict[str, Any] = {
    "kind": "chat",
    "messages": [{"role": "user", "content": "你好"}],
    "sampling": {"max_tokens": 10, "temperature": 0.0},
}
_COLUMNS = "tenant, kind, label, confidence, score, template_hash, label_set_hash, cached_from"


def columns(sandbox: Sandbox, job_id: JobId) -> dict[str, Any]:
    """Return the measures of an outcome."""
    ((*values,),) = sandbox.query(f"SELECT {_COLUMNS} FROM outcomes WHERE job_id = %s", job_id)
    return dict(zip(_COLUMNS.split(", "), values, strict=True))


def test_outcomes_have_columns_for_what_is_counted_also_of_cached_answers(sandbox: Sandbox) -> None:
    with running(sandbox, speed=100) as (client, _):
        found = {}
        for job in (INTENT, SENTIMENT, CHAT):
            first = client.result(client.submit(job | {"tenant": "shop"}), 20)
            again = client.result(client.submit(job | {"tenant": "shop"}), 20)
            (bulk_id,) = client.submit_many([job | {"tenant": "shop"}], tenant="shop").job_ids
            bulk = client.result(bulk_id, 20)
            assert (first.cached_from, again.cached_from, bulk.cached_from) == (None, first.job_id, first.job_id)
            original, *copies = (columns(sandbox, outcome.job_id) for outcome in (first, again, bulk))
            for copy in copies:
                assert copy == original | {"cached_from": first.job_id}
            assert original["template_hash"] == first.template_hash
            assert (original["tenant"], original["kind"]) == ("shop", job["kind"])
            found[job["kind"]] = (first.result, original)
        assert sandbox.query("SELECT count(*), count(DISTINCT job_id), min(tenant), max(tenant) FROM answer_cache") == [
            (3, 3, "shop", "shop")
        ]
    result, intent = found["intent"]
    assert isinstance(result, IntentResult)
    assert (intent["label"], intent["score"]) == (result.label, None)
    assert intent["confidence"] == pytest.approx(result.confidence)
    result, sentiment = found["sentiment"]
    assert isinstance(result, SentimentResult)
    assert sentiment["label"] == result.label
    assert sentiment["score"] == pytest.approx(result.score)
    assert sentiment["confidence"] == pytest.approx(result.confidence)
    assert intent["label_set_hash"] != sentiment["label_set_hash"]
    assert None not in (intent["label_set_hash"], sentiment["label_set_hash"])
    _, chat_columns = found["chat"]
    assert [chat_columns[name] for name in ("label", "confidence", "score", "label_set_hash")] == [None] * 4
    assert chat_columns["template_hash"] is not None


def test_rows_that_share_one_request_have_equal_columns(sandbox: Sandbox) -> None:
    with running(sandbox, speed=100) as (client, simulator):
        batch = client.submit_many([INTENT] * 5 + [SENTIMENT] * 5)
        *_, last = client.watch_batch(batch.batch_id)
        assert (last.succeeded, last.cached) == (10, 8)
        assert simulator.state()["rows"] == 2
        for job_ids in (batch.job_ids[:5], batch.job_ids[5:]):
            rows = [columns(sandbox, job_id) for job_id in job_ids]
            (origin,) = {row.pop("cached_from") for row in rows} - {None}
            assert origin in job_ids
            assert rows == [rows[0]] * 5
            assert None not in (rows[0]["label"], rows[0]["confidence"], rows[0]["label_set_hash"])


def test_a_label_set_has_one_hash_whatever_is_said(sandbox: Sandbox) -> None:
    labels = [{"name": "refund"}, {"name": "换货"}]
    with running(sandbox, speed=100) as (client, _):
        outcomes = [
            client.result(client.submit({"kind": "intent", "text": text, "labels": given}), 20)
            for text, given in (("我要退款", labels), ("我想换货", labels), ("我要退款", labels[:1]))
        ]
        assert all(outcome.state is JobState.SUCCEEDED for outcome in outcomes)
        one, same, other = (columns(sandbox, outcome.job_id)["label_set_hash"] for outcome in outcomes)
        assert one == same != other


def test_a_failed_job_has_kind_and_hashes_but_no_measures(sandbox: Sandbox) -> None:
    with running(sandbox, "--fail", "400:1", speed=100) as (client, _):
        outcome = client.result(client.submit(INTENT | {"tenant": "shop"}), 20)
        assert outcome.state is JobState.FAILED
        found = columns(sandbox, outcome.job_id)
        assert (found["tenant"], found["kind"]) == ("shop", "intent")
        assert None not in (found["template_hash"], found["label_set_hash"])
        assert [found[name] for name in ("label", "confidence", "score")] == [None] * 3
        assert sandbox.query("SELECT tenant, code FROM failed_attempts") == [("shop", "request_rejected")]
