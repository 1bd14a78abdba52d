"""The same question has one answer: copied where it was asked before, sent once where it is asked at the same time."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from pipeline import AsyncClient, Client
from schemas.ids import JobId
from schemas.results import IntentResult, JobState, Outcome
from schemas.timings import Usage
from tests.support.sandbox import Sandbox, Simulator, wait_for

REFUND: dict[str, Any] = {"kind": "intent", "text": "东西我不要了，我要退款。"}


@pytest.fixture
def simulator(sandbox: Sandbox) -> Iterator[Simulator]:
    with sandbox.simulator() as one:
        yield one


@pytest.fixture
def client(sandbox: Sandbox, simulator: Simulator) -> Iterator[Client]:
    """One worker a lane, recovery, a client."""
    del simulator
    with ExitStack() as stack:
        stack.enter_context(sandbox.worker("interactive"))
        stack.enter_context(sandbox.worker("bulk"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        yield stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))


def ask(client: Client, job: dict[str, Any]) -> Outcome:
    return client.result(client.submit(job), timeout=20)


def batch_of(client: Client, jobs: list[dict[str, Any]]) -> list[Outcome]:
    batch = client.submit_many(jobs)
    for _ in client.watch_batch(batch.batch_id):
        pass
    return list(client.batch_outcomes(batch.batch_id))


def test_what_was_asked_before_is_copied_in_both_lanes_and_says_of_whom(
    client: Client, simulator: Simulator, sandbox: Sandbox
) -> None:
    first = ask(client, REFUND)
    rows = simulator.state()["rows"]
    again, bulk = ask(client, {**REFUND, "tags": {"call": "7"}, "priority": 5}), batch_of(client, [REFUND] * 3)
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
    # Copied, not pointed at: the first one's going takes nothing from the others.
    sandbox.query("DELETE FROM outcomes WHERE job_id = %s", first.job_id)
    assert client.get(again.job_id).result == first.result
    assert ask(client, REFUND).cached_from is None


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
def test_another_question_another_tenant_or_no_wish_for_it_is_asked(
    client: Client, simulator: Simulator, other: dict[str, Any]
) -> None:
    ask(client, REFUND)
    rows = simulator.state()["rows"]
    job = {key: value for key, value in {**REFUND, **other}.items() if value is not None}
    assert ask(client, job).cached_from is None
    assert simulator.state()["rows"] > rows


def test_labels_with_the_same_words_and_other_names_are_not_mixed_up(client: Client) -> None:
    def labelled(name: str) -> Outcome:
        labels = [{"name": name, "word": "退款"}, {"name": "rest", "word": "别的事情"}]
        return ask(client, {**REFUND, "labels": labels})

    for name in ("money-back", "refund"):
        outcome = labelled(name)
        assert isinstance(outcome.result, IntentResult)
        assert outcome.result.label == name
        assert outcome.cached_from is None


def test_a_chat_is_copied_only_at_temperature_nought(client: Client) -> None:
    def chat(**sampling: float) -> Outcome:
        messages = [{"role": "user", "content": "你好"}]
        return ask(client, {"kind": "chat", "messages": messages, "sampling": {"max_tokens": 20, **sampling}})

    for sampling, copied in (({}, False), ({"temperature": 0.7}, False), ({"temperature": 0.0}, True)):
        first, second = chat(**sampling), chat(**sampling)
        assert second.cached_from == (first.job_id if copied else None)


def test_a_streamed_job_that_was_answered_before_shows_the_whole_text(client: Client) -> None:
    job = {
        "kind": "chat",
        "messages": [{"role": "user", "content": "你好"}],
        "sampling": {"max_tokens": 30, "temperature": 0},
        "stream": True,
    }
    first = ask(client, job)
    *texts, end = client.stream(job)
    assert end.event == "end"
    assert end.outcome.cached_from == first.job_id
    assert "".join(event.text for event in texts if event.event == "text") == end.outcome.result.text  # type: ignore[union-attr]


def test_identical_rows_of_a_batch_are_sent_once_and_a_failure_of_the_first_fails_no_other(
    client: Client, simulator: Simulator
) -> None:
    found = batch_of(client, [{**REFUND, "text": f"我要退款，{i % 5}"} for i in range(100)])
    assert all(outcome.state is JobState.SUCCEEDED for outcome in found)
    assert simulator.state()["rows"] == 5
    originals = {outcome.job_id for outcome in found if outcome.cached_from is None}
    assert len(originals) == 5
    assert {outcome.cached_from for outcome in found if outcome.cached_from} == originals
    script = {"answers": [{"when": "退货", "fault": "400", "times": 1}]}
    httpx.put(f"{simulator.url}/simulator/answers", json=script).raise_for_status()
    found = batch_of(client, [{**REFUND, "text": "我要退货"}] * 10)
    assert sorted(outcome.state for outcome in found) == ["failed"] + ["succeeded"] * 9


def test_one_who_asks_the_same_waits_for_the_answer_under_way_and_no_longer_when_that_is_cancelled(
    client: Client, simulator: Simulator, sandbox: Sandbox
) -> None:
    del client
    job = {
        "kind": "chat",
        "messages": [{"role": "user", "content": "讲个长故事"}],
        "sampling": {"max_tokens": 2_000, "temperature": 0},
    }
    script = {"answers": [{"when": "长故事", "answer": "从前有座山。" * 300}]}
    httpx.put(f"{simulator.url}/simulator/answers", json=script).raise_for_status()

    async def go() -> tuple[Outcome, Outcome]:
        async with AsyncClient(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as both:
            first = await both.submit(job)
            await asyncio.to_thread(wait_for, lambda: simulator.state()["running"] == 1, "the first")
            second = await both.submit(job)
            await asyncio.to_thread(wait_for, lambda: _running(sandbox, second), "the second")
            assert simulator.state()["running"] == 1
            assert await both.cancel(first)
            return await both.result(first, 20), await both.result(second, 20)

    cancelled, answered = asyncio.run(go())
    assert cancelled.state is JobState.CANCELLED
    assert answered.state is JobState.SUCCEEDED
    assert answered.cached_from is None


def _running(sandbox: Sandbox, job_id: JobId) -> bool:
    return bool(sandbox.query("SELECT 1 FROM chunks WHERE first_job_id = %s AND state = 'running'", job_id))


def test_chat_never_waits_for_bulk_that_asks_the_same(client: Client, simulator: Simulator) -> None:
    script = {"answers": [{"when": "退款", "fault": "slow", "seconds": 3, "times": 1}]}
    httpx.put(f"{simulator.url}/simulator/answers", json=script).raise_for_status()
    batch = client.submit_many([REFUND])
    wait_for(lambda: simulator.state()["faults_struck"] == 1, "bulk under way")
    outcome = ask(client, REFUND)
    assert outcome.cached_from is None
    assert outcome.timings.total_seconds is not None
    assert outcome.timings.total_seconds < 2
    for _ in client.watch_batch(batch.batch_id):
        pass
