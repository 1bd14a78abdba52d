"""Jobs through real Celery workers, a real Redis and Postgres, and a simulated engine."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline import AsyncClient, Client
from pipeline.broker import make_app
from schemas.errors import DuplicateJob, ErrorCode, InvalidJob, JobNotFound, ResultTimeout, UnknownModel
from schemas.ids import JobId
from schemas.results import IntentResult, JobState, Outcome
from tests.support.sandbox import Sandbox, wait_for

JOBS: dict[str, dict[str, Any]] = {
    "intent": {"kind": "intent", "text": "东西我不要了，我要退款。"},
    "sentiment": {"kind": "sentiment", "text": "太差了，等了一个小时没人管，气死我了！"},
    "chat": {"kind": "chat", "messages": [{"role": "user", "content": "你好"}], "sampling": {"max_tokens": 40}},
}


@pytest.fixture
def running(sandbox: Sandbox) -> Iterator[Sandbox]:
    """A simulator, a worker of each lane and recovery."""
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator())
        stack.enter_context(sandbox.worker("interactive"))
        stack.enter_context(sandbox.worker("bulk"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        yield sandbox


def result_of(sandbox: Sandbox, job: dict[str, Any]) -> Outcome:
    with Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:
        return client.result(client.submit(job), timeout=20)


def test_own_labels_come_back_with_other_always_among_them(running: Sandbox) -> None:
    labels = [
        {"name": "换货", "description": "要换一件"},
        {"name": "催单", "description": "催快点发货", "examples": ["快点发"]},
    ]
    outcome = result_of(running, {"kind": "intent", "text": "我想换货，换一件大号的", "labels": labels})
    assert isinstance(outcome.result, IntentResult)
    assert outcome.result.label == "换货"
    assert set(outcome.result.probabilities or ()) == {"换货", "催单", "other"}


def test_labels_that_begin_alike_are_asked_for_by_letter(running: Sandbox) -> None:
    labels = [
        {"name": "refund money", "description": "wants money back"},
        {"name": "refund points", "description": "points"},
    ]
    outcome = result_of(running, {"kind": "intent", "text": "I want my money back, refund my money", "labels": labels})
    assert isinstance(outcome.result, IntentResult)
    assert outcome.result.label == "refund money"
    assert outcome.result.confidence is not None


def test_more_labels_than_alternatives_have_no_confidence(running: Sandbox) -> None:
    labels = [{"name": f"主题{i}号"} for i in range(30)]
    outcome = result_of(running, {"kind": "intent", "text": "我要办主题7号的业务", "labels": labels})
    assert isinstance(outcome.result, IntentResult)
    assert outcome.result.label in {label["name"] for label in labels} | {"other"}
    assert outcome.result.confidence is None


def test_a_bad_job_is_refused_with_a_sentence_that_names_the_field(sandbox: Sandbox) -> None:
    with Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:
        with pytest.raises(InvalidJob, match=r"text: .*at most 20,000"):
            client.submit({"kind": "intent", "text": "x" * 20_001})
        with pytest.raises(InvalidJob, match="provide exactly one of text"):
            client.submit({"kind": "sentiment"})
        with pytest.raises(UnknownModel, match=r"model: 'gpt-9' is not in models.toml; known are chatglm3-6b"):
            client.submit(JOBS["intent"] | {"model": "gpt-9"})
        with pytest.raises(UnknownModel, match="does not support intent"):
            client.submit(JOBS["intent"] | {"model": "cogagent"})
        with pytest.raises(InvalidJob, match=r"job 1: .*messages"):
            client.submit_many([JOBS["chat"], {"kind": "chat", "messages": []}])
    assert sandbox.query("SELECT count(*) FROM jobs") == [(0,)]


def test_a_key_returns_its_job_and_refuses_another_job(running: Sandbox) -> None:
    with Client(database_url=running.database_url, redis_url=running.redis_url) as client:
        job = JOBS["intent"] | {"idempotency_key": "order-1"}
        first = client.submit(job)
        assert client.submit(job) == first
        with pytest.raises(DuplicateJob, match=str(first)):
            client.submit(job | {"text": "别的事"})
        assert client.result(first, 20).state is JobState.SUCCEEDED
        assert client.submit(job) == first


def test_a_timeout_leaves_the_job_running(sandbox: Sandbox) -> None:
    with Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:
        job_id = client.submit(JOBS["intent"])
        with pytest.raises(ResultTimeout, match=rf"job {job_id} is not finished yet; it continues"):
            client.result(job_id, timeout=timedelta(seconds=0.2))
        assert client.get(job_id).state is JobState.QUEUED
        with sandbox.simulator(), sandbox.worker("interactive"):
            assert client.result(job_id, timeout=20).state is JobState.SUCCEEDED
        with pytest.raises(JobNotFound):
            client.result(JobId(1), timeout=5)


def test_callers_that_submit_at_once_share_chunks(running: Sandbox) -> None:
    async def go() -> None:
        async with AsyncClient(database_url=running.database_url, redis_url=running.redis_url) as client:
            ids = await asyncio.gather(*[client.submit(JOBS["intent"] | {"text": f"退款 {i}"}) for i in range(64)])
            found = await asyncio.gather(*[client.result(job_id, 20) for job_id in ids])
            assert [outcome.job_id for outcome in found] == ids
            assert all(outcome.state is JobState.SUCCEEDED for outcome in found)

    asyncio.run(go())
    ((chunks, rows),) = running.query("SELECT count(*), sum(rows) FROM chunks")
    assert rows == 64
    assert chunks <= 8


def test_a_job_past_its_deadline_expires_without_using_a_token(sandbox: Sandbox) -> None:
    with Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:
        job_id = client.submit(JOBS["intent"] | {"deadline": datetime.now(UTC) + timedelta(milliseconds=50)})
        wait_for(lambda: sandbox.query("SELECT now() > deadline FROM jobs")[0][0], "the deadline")
        with sandbox.simulator() as simulator, sandbox.worker("interactive"):
            outcome = client.result(job_id, timeout=20)
            assert outcome.state is JobState.EXPIRED
            assert "vllm:generation_tokens_total" in metrics(simulator.url)
            assert counter(simulator.url, "generation_tokens_total") == 0


def test_a_cancelled_job_stays_cancelled(sandbox: Sandbox) -> None:
    with Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:
        job_id = client.submit(JOBS["intent"])
        assert sandbox.yyc3("jobs", "cancel", str(job_id)).stdout == f"job {job_id} is cancelled\n"
        assert sandbox.yyc3("jobs", "cancel", str(job_id), check=1).stdout == f"job {job_id} was settled before\n"
        assert client.result(job_id, 5).state is JobState.CANCELLED
        assert "there is no job 5" in sandbox.yyc3("jobs", "cancel", "5", check=1).stderr


def metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics", trust_env=False).text


def counter(url: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in metrics(url).splitlines() if line.startswith(f"vllm:{name}{{"))


def test_a_rejected_row_fails_alone(sandbox: Sandbox, tmp_path: Path) -> None:
    script = tmp_path / "answers.jsonl"
    script.write_text(json.dumps({"when": "POISONED", "status": 400}) + "\n")
    with (
        sandbox.simulator("--answers", str(script)),
        sandbox.worker("bulk"),
        Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client,
    ):
        texts = [f"我要退款 {i}" + (" POISONED" if i in {3, 40} else "") for i in range(64)]
        batch = client.submit_many([{"kind": "intent", "text": text} for text in texts])
        *_, last = client.watch_batch(batch.batch_id)
        assert (last.succeeded, last.failed) == (62, 2)
        failed = [o for o in client.batch_outcomes(batch.batch_id) if o.state is JobState.FAILED]
        assert [batch.job_ids.index(o.job_id) for o in failed] == [3, 40]
        assert all(o.error and o.error.code is ErrorCode.REQUEST_REJECTED for o in failed)


def test_an_old_server_gets_single_requests_and_guided_choice(sandbox: Sandbox) -> None:
    with (
        sandbox.simulator("--vllm-version", "0.10.2") as simulator,
        sandbox.worker("bulk"),
        Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client,
    ):
        batch = client.submit_many([{"kind": "sentiment", "text": f"太差了 {i}"} for i in range(40)])
        *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 40
        outcome = next(iter(client.batch_outcomes(batch.batch_id)))
        assert outcome.engine_version == "0.10.2"
        assert simulator.url == outcome.endpoint


SCRIPTS: dict[ErrorCode, dict[str, Any]] = {
    ErrorCode.REQUEST_REJECTED: {"status": 422},
    ErrorCode.ENGINE_FAILED: {"status": 500},
    ErrorCode.INVALID_OUTPUT: {"fault": "nonsense"},
    ErrorCode.ENGINE_TIMEOUT: {"fault": "hang"},
}


def test_every_engine_error_has_its_code_and_its_attempts_recorded(sandbox: Sandbox, tmp_path: Path) -> None:
    script = tmp_path / "answers.jsonl"
    lines = [{"when": f"<{code}>", **what} for code, what in SCRIPTS.items()]
    script.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator("--answers", str(script), "--max-model-len", "2000"))
        stack.enter_context(sandbox.worker("interactive", AI_TIMEOUT_MS="700"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        ids = {code: client.submit({"kind": "sentiment", "text": f"话 <{code}>"}) for code in SCRIPTS}
        long = {"role": "user", "content": "长" * 4_000}  # an utterance would be shortened
        ids[ErrorCode.PROMPT_TOO_LONG] = client.submit({"kind": "chat", "messages": [long]})
        for code, job_id in ids.items():
            outcome = client.result(job_id, 60)
            assert outcome.state is JobState.FAILED
            assert outcome.error is not None
            assert outcome.error.code is code
            final = code in {ErrorCode.REQUEST_REJECTED, ErrorCode.PROMPT_TOO_LONG}
            assert outcome.attempts == (1 if final else 5)
            assert sandbox.query("SELECT count(*) FROM failed_attempts WHERE job_id = %s", job_id) == [
                (outcome.attempts,)
            ]


def test_attempts_that_fail_for_a_while_are_repeated_until_they_succeed(sandbox: Sandbox, tmp_path: Path) -> None:
    faults: list[dict[str, Any]] = [{"status": 503}, {"status": 429}]
    faults += [{"fault": kind} for kind in ("cut", "garbage", "abort", "empty")]
    script = tmp_path / "answers.jsonl"
    lines = [{"when": f"<{i}>", "times": 2, **fault} for i, fault in enumerate(faults)]
    script.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator("--answers", str(script)))
        stack.enter_context(sandbox.worker("interactive"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        ids = [client.submit({"kind": "intent", "text": f"我要退款 <{i}>", "priority": i}) for i in range(len(faults))]
        for job_id, fault in zip(ids, faults, strict=True):
            outcome = client.result(job_id, 30)
            assert outcome.state is JobState.SUCCEEDED, (fault, outcome.error)
            assert outcome.attempts == (0 if "status" in fault else 2), "an overloaded engine costs no attempt"


def test_an_unavailable_engine_costs_no_attempt_and_jobs_wait_for_it(sandbox: Sandbox) -> None:
    sandbox.environment |= {"AI_BASE_URL": "http://127.0.0.1:9", "AI_MODEL": "chatglm3-6b"}
    with Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:
        with sandbox.worker("interactive") as worker:
            job_id = client.submit(JOBS["intent"])
            wait_for(
                lambda: sandbox.query("SELECT 1 FROM chunks WHERE last_code = 'engine_unavailable'"),
                "the first attempt",
            )
            seen = client.get(job_id)
            assert seen.state is JobState.QUEUED
            assert seen.error is not None
            assert seen.error.code is ErrorCode.ENGINE_UNAVAILABLE
            assert worker.logged("http://127.0.0.1:9 does not answer")
        with sandbox.simulator(), sandbox.worker("interactive"), sandbox.process("pipeline.cli", "recover"):
            outcome = client.result(job_id, 30)
            assert (outcome.state, outcome.attempts) == (JobState.SUCCEEDED, 0)


def test_a_foreign_message_in_our_queue_does_not_stop_the_next_job(running: Sandbox) -> None:
    app = make_app(running.redis_url)
    app.send_task("yyc3.chunk", args=({"v": 9, "words": "x"},), queue="chatglm3-6b")
    app.close()
    assert result_of(running, JOBS["intent"]).state is JobState.SUCCEEDED


def test_a_dialogue_that_is_too_long_loses_its_middle_and_succeeds(sandbox: Sandbox) -> None:
    turns = [{"speaker": "customer", "text": f"第{i}句，我要退款，" + "说来话长" * 10} for i in range(60)]
    with (
        sandbox.simulator("--max-model-len", "1200"),
        sandbox.worker("bulk"),
        Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client,
    ):
        batch = client.submit_many([{"kind": "intent", "turns": turns}, {"kind": "intent", "text": "我要退款"}])
        *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 2
        long, short = client.batch_outcomes(batch.batch_id)
        assert long.result is not None
        assert short.result is not None
        assert (long.result.truncated, short.result.truncated) == (True, False)
        assert (long.attempts, short.attempts) == (0, 0)
