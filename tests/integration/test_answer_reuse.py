"""Equal questions are answered once: from the cache, or by one request if they are asked at the same time."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from pipeline import Client
from schemas.ids import JobId
from schemas.results import IntentResult, JobState, Outcome
from schemas.timings import Usage
from tests.support.exclusive import reserve_port
from tests.support.load import gated
from tests.support.sandbox import Sandbox, Simulator, wait_for

REFUND: dict[str, Any] = {"kind": "intent", "text": "东西我不要了，我要退款。"}


@pytest.fixture
def simulator(sandbox: Sandbox) -> Iterator[Simulator]:
    with sandbox.simulator() as started:
        yield started


@pytest.fixture
def client(sandbox: Sandbox, simulator: Simulator) -> Iterator[Client]:
    """A worker of each lane, recovery and a client."""
    del simulator
    with ExitStack() as stack:
        stack.enter_context(sandbox.worker("interactive"))
        stack.enter_context(sandbox.worker("bulk"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        yield stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))


def result_of(client: Client, job: dict[str, Any]) -> Outcome:
    return client.result(client.submit(job), timeout=20)


def outcomes_of(client: Client, jobs: list[dict[str, Any]]) -> list[Outcome]:
    batch = client.submit_many(jobs)
    for _ in client.watch_batch(batch.batch_id):
        pass
    return list(client.batch_outcomes(batch.batch_id))


def test_an_answered_question_is_copied_in_both_lanes_with_its_origin(
    client: Client, simulator: Simulator, sandbox: Sandbox
) -> None:
    first = result_of(client, REFUND)
    rows = simulator.state()["rows"]
    again, bulk = result_of(client, {**REFUND, "tags": {"call": "7"}, "priority": 5}), outcomes_of(client, [REFUND] * 3)
    assert simulator.state()["rows"] == rows
    assert first.cached_from is None
    assert first.batch_rows == 1
    for copied in (again, *bulk):
        assert copied.result == first.result
        assert (copied.cached_from, copied.state) == (first.job_id, JobState.SUCCEEDED)
        assert copied.usage == Usage(prompt_tokens=0, completion_tokens=0)
        assert (copied.model_revision, copied.simulated) == (first.model_revision, True)
        assert copied.batch_rows is None
    assert sandbox.query("SELECT sum(cached), sum(succeeded) FROM chunks") == [(4, 5)]
    # Copied, not referenced: when the first outcome is deleted, the others keep their answer.
    sandbox.query("DELETE FROM outcomes WHERE job_id = %s", first.job_id)
    assert client.get(again.job_id).result == first.result
    assert result_of(client, REFUND).cached_from is None


@pytest.mark.parametrize(
    "other",
    [
        {"text": "东西我不要了，我要退款！"},
        {"tenant": "elsewhere"},
        {"cache": False},
        {"language": "en"},
        {"labels": [{"name": "退款"}, {"name": "其他事"}]},
        {"text": None, "turns": [{"speaker": "customer", "text": REFUND["text"]}]},
    ],
)
def test_another_question_tenant_or_a_job_without_cache_is_sent(
    client: Client, simulator: Simulator, other: dict[str, Any]
) -> None:
    result_of(client, REFUND)
    rows = simulator.state()["rows"]
    job = {key: value for key, value in {**REFUND, **other}.items() if value is not None}
    assert result_of(client, job).cached_from is None
    assert simulator.state()["rows"] > rows


def test_an_engine_that_starts_again_may_have_other_weights(sandbox: Sandbox) -> None:
    """Under the same name and at the same place: what the former one answered is not its answer."""
    with ExitStack() as stack:
        port = reserve_port()
        start = ("simulator", "--model", "chatglm3-6b", "--port", str(port), "--speed", "100")
        engine = stack.enter_context(sandbox.process(*start))
        engine.wait_until_logged(r"http://[\d.]+:\d+", "the simulator")
        sandbox.environment |= {"AI_BASE_URL": f"http://127.0.0.1:{port}", "AI_MODEL": "chatglm3-6b"}
        stack.enter_context(sandbox.worker("interactive"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        first = result_of(client, REFUND)
        assert result_of(client, REFUND).cached_from == first.job_id
        engine.kill()
        waiting = client.submit({**REFUND, "text": "在等什么"})  # the worker notices that it is away
        wait_for(lambda: client.get(waiting).error is not None, "the engine to be missed")
        again = stack.enter_context(sandbox.process(*start))
        again.wait_until_logged(r"http://[\d.]+:\d+", "the simulator")
        client.result(waiting, timeout=60)
        assert result_of(client, REFUND).cached_from is None


def test_labels_with_equal_words_and_other_names_are_other_questions(client: Client) -> None:
    def labelled(name: str) -> Outcome:
        labels = [{"name": name, "word": "退款"}, {"name": "rest", "word": "别的事情"}]
        return result_of(client, {**REFUND, "labels": labels})

    for name in ("money-back", "refund"):
        outcome = labelled(name)
        assert isinstance(outcome.result, IntentResult)
        assert outcome.result.label == name
        assert outcome.cached_from is None


def test_a_chat_is_copied_only_at_temperature_zero(client: Client) -> None:
    def chat(**sampling: float) -> Outcome:
        messages = [{"role": "user", "content": "你好"}]
        return result_of(client, {"kind": "chat", "messages": messages, "sampling": {"max_tokens": 20, **sampling}})

    for sampling, copied in (({}, False), ({"temperature": 0.7}, False), ({"temperature": 0.0}, True)):
        first, second = chat(**sampling), chat(**sampling)
        assert second.cached_from == (first.job_id if copied else None)


def test_a_streamed_job_with_a_cached_answer_gets_its_whole_text(client: Client) -> None:
    job = {
        "kind": "chat",
        "messages": [{"role": "user", "content": "你好"}],
        "sampling": {"max_tokens": 30, "temperature": 0},
        "stream": True,
    }
    first = result_of(client, job)
    *texts, end = client.stream(job)
    assert end.event == "end"
    assert end.outcome.cached_from == first.job_id
    assert "".join(event.text for event in texts if event.event == "text") == end.outcome.result.text  # type: ignore[union-attr]


def test_equal_rows_are_sent_once_and_a_failure_fails_no_other_row(client: Client, simulator: Simulator) -> None:
    found = outcomes_of(client, [{**REFUND, "text": f"我要退款，{i % 5}"} for i in range(100)])
    assert all(outcome.state is JobState.SUCCEEDED for outcome in found)
    assert simulator.state()["rows"] == 5
    originals = {outcome.job_id for outcome in found if outcome.cached_from is None}
    assert len(originals) == 5
    assert {outcome.cached_from for outcome in found if outcome.cached_from} == originals
    script = {"answers": [{"when": "退货", "fault": "400", "times": 1}]}
    httpx.put(f"{simulator.url}/simulator/answers", json=script).raise_for_status()
    found = outcomes_of(client, [{**REFUND, "text": "我要退货"}] * 10)
    assert sorted(outcome.state for outcome in found) == ["failed"] + ["succeeded"] * 9


def test_a_follower_is_answered_when_its_leader_is_cancelled(sandbox: Sandbox, simulator: Simulator) -> None:
    job = {
        "kind": "chat",
        "messages": [{"role": "user", "content": "讲个长故事"}],
        "sampling": {"max_tokens": 200, "temperature": 0},
    }
    with ExitStack() as stack:
        gate = stack.enter_context(gated(sandbox, simulator, 0))
        stack.enter_context(sandbox.worker("interactive"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        first = client.submit(job)
        wait_for(lambda: gate.held_rows == 1, "the first request")
        second = client.submit(job)
        wait_for(lambda: _is_claimed(sandbox, second), "the claim of the second job")
        assert gate.held_rows == 1
        assert client.cancel(first)
        gate.open()
        cancelled, answered = client.result(first, 20), client.result(second, 20)
    assert cancelled.state is JobState.CANCELLED
    assert answered.state is JobState.SUCCEEDED
    assert answered.cached_from is None


def _is_claimed(sandbox: Sandbox, job_id: JobId) -> bool:
    return bool(sandbox.query("SELECT 1 FROM chunks WHERE first_job_id = %s AND state = 'running'", job_id))


def test_an_interactive_job_never_waits_for_an_equal_bulk_row(client: Client, simulator: Simulator) -> None:
    script = {"answers": [{"when": "退款", "fault": "slow", "seconds": 60, "times": 1}]}
    httpx.put(f"{simulator.url}/simulator/answers", json=script).raise_for_status()
    (bulk,) = client.submit_many([REFUND]).job_ids
    wait_for(lambda: simulator.state()["faults_struck"] == 1, "the bulk request")
    outcome = result_of(client, REFUND)
    assert outcome.state is JobState.SUCCEEDED
    assert outcome.cached_from is None
    assert client.get(bulk).state is JobState.RUNNING
    assert client.cancel(bulk)
