"""A cancelled job costs no further tokens, and a job past its deadline costs none."""

import json
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import redis

from pipeline import Client
from pipeline.store import Database, recovery
from schemas.errors import ErrorCode
from schemas.results import JobState
from tests.support.sandbox import Sandbox, Simulator, wait_for

LONG = {"kind": "chat", "messages": [{"role": "user", "content": "讲个故事"}], "sampling": {"max_tokens": 1_000}}


def story(sandbox: Sandbox) -> tuple[str, str]:
    """Return the arguments of a simulator that answers with a thousand tokens, which takes 15 s."""
    answers = sandbox.home / "answers.jsonl"
    answers.write_text(json.dumps({"when": "故事", "answer": "从前有一座山。" * 200}))
    return "--answers", str(answers)


def open_client(sandbox: Sandbox, stack: ExitStack) -> Client:
    return stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))


def has_stopped(simulator: Simulator) -> bool:
    state = simulator.state()
    return state["aborted"] > 0 and state["running"] == 0


def test_a_cancel_aborts_the_request_of_a_running_job(sandbox: Sandbox) -> None:
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator(*story(sandbox), speed=1))
        stack.enter_context(sandbox.worker("interactive"))
        client = open_client(sandbox, stack)
        job_id, other = client.submit(LONG), client.submit({"kind": "sentiment", "text": "谢谢"})
        assert client.result(other, timeout=20).state is JobState.SUCCEEDED
        wait_for(lambda: simulator.state()["running"] == 1, "the engine to begin")
        assert client.cancel(job_id) is True
        assert client.cancel(job_id) is False
        assert client.result(job_id, timeout=20).state is JobState.CANCELLED
        wait_for(lambda: has_stopped(simulator), "the engine to stop")
        wait_for(
            lambda: (
                sandbox.query("SELECT state, cancelled FROM chunks WHERE first_job_id = %s", job_id) == [("done", 1)]
            ),
            "its chunk to close",
        )


def test_a_cancel_without_a_notification_is_found_at_the_renewal(sandbox: Sandbox) -> None:
    sandbox.environment["YYC3_LEASE_SECONDS"] = "3"
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator(*story(sandbox), speed=1))
        stack.enter_context(sandbox.worker("interactive"))
        client = open_client(sandbox, stack)
        job_id = client.submit(LONG)
        wait_for(lambda: simulator.state()["running"] == 1, "the engine to begin")
        # What `cancel` stores, without its notification.
        sandbox.query(
            """WITH o AS (INSERT INTO outcomes (job_id, replay, tenant, kind, state, code, message)
                          VALUES (%s, 0, 'default', 'chat', 'cancelled', 'cancelled', 'by hand'))
               UPDATE chunks SET cancelled = cancelled + 1 WHERE first_job_id = %s""",
            job_id,
            job_id,
        )
        wait_for(lambda: has_stopped(simulator), "the engine to stop")


def test_a_cancelled_row_of_a_micro_batch_leaves_its_neighbours(sandbox: Sandbox) -> None:
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator("--fail", "slow:1:6", speed=100))
        stack.enter_context(sandbox.worker("bulk"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = open_client(sandbox, stack)
        batch = client.submit_many([{"kind": "sentiment", "text": f"太差了 {i}"} for i in range(20)])
        wait_for(lambda: simulator.state()["requests"] > 0, "the rows to be sent")
        assert client.cancel(batch.job_ids[7])
        *_, last = client.watch_batch(batch.batch_id)
        assert (last.succeeded, last.cancelled, last.failed) == (19, 1, 0)
        assert client.get(batch.job_ids[7]).state is JobState.CANCELLED


def test_rows_cancelled_before_they_are_sent_are_never_sent(sandbox: Sandbox) -> None:
    models = sandbox.home / "models.toml"
    models.write_text('[models.chatglm3-6b]\nkinds = ["chat", "sentiment"]\nport = 10086\nmax_num_seqs = 1\n')
    sandbox.environment["YYC3_MODELS_FILE"] = str(models)
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator(*story(sandbox), speed=1))
        stack.enter_context(sandbox.worker("interactive"))
        client = open_client(sandbox, stack)
        first = client.submit(LONG)
        wait_for(lambda: simulator.state()["running"] == 1, "the only slot to be used")
        waiting = [client.submit({"kind": "sentiment", "text": f"第{i}位：谢谢"}) for i in range(3)]
        wait_for(
            lambda: sandbox.query("SELECT count(*) FROM chunks WHERE state = 'running'") == [(4,)],
            "all chunks to be claimed",
        )
        for job_id in waiting:
            assert client.cancel(job_id)
        client.cancel(first)
        wait_for(lambda: sandbox.query("SELECT min(state) FROM chunks") == [("done",)], "every chunk to close")
        assert simulator.state()["rows"] == 1


def test_a_job_that_waits_for_capacity_past_its_deadline_is_not_sent(sandbox: Sandbox) -> None:
    models = sandbox.home / "models.toml"
    models.write_text('[models.chatglm3-6b]\nkinds = ["chat", "sentiment"]\nport = 10086\nmax_num_seqs = 1\n')
    sandbox.environment["YYC3_MODELS_FILE"] = str(models)
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator(*story(sandbox), speed=1))
        stack.enter_context(sandbox.worker("interactive"))
        client = open_client(sandbox, stack)
        first = client.submit(LONG)
        wait_for(lambda: simulator.state()["running"] == 1, "the only slot to be used")
        soon = datetime.now(UTC) + timedelta(seconds=2)
        late = client.submit({"kind": "sentiment", "text": "谢谢", "deadline": soon})
        wait_for(lambda: datetime.now(UTC) > soon, "the deadline")
        client.cancel(first)
        outcome = client.result(late, timeout=20)
        assert outcome.state is JobState.EXPIRED
        assert outcome.error is not None
        assert outcome.error.code is ErrorCode.DEADLINE_PASSED
        assert simulator.state()["rows"] == 1


def test_a_queued_job_expires_without_a_worker_for_its_model(sandbox: Sandbox) -> None:
    with ExitStack() as stack:
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = open_client(sandbox, stack)
        soon = datetime.now(UTC) + timedelta(seconds=1)
        events = client.stream({**LONG, "deadline": soon})
        *_, end = events
        assert end.event == "end"
        assert end.outcome.state is JobState.EXPIRED
        with redis.Redis.from_url(sandbox.redis_url, decode_responses=True) as broker:
            stream: Any = broker  # the frame follows the outcome, which the reader may have seen first
            wait_for(lambda: stream.xlen(f"yyc3.stream.{end.job_id}") > 0, "the frame")
            found = stream.xrange(f"yyc3.stream.{end.job_id}")
        assert [fields["event"] for _, fields in found] == ["end"]


async def test_only_the_rows_of_a_chunk_past_their_deadline_expire(sandbox: Sandbox, database: Database) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    with Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:
        jobs: list[dict[str, Any]] = [{"kind": "sentiment", "text": f"好 {i}"} for i in range(4)]
        jobs[1]["deadline"] = past
        jobs[2]["deadline"] = datetime.now(UTC) + timedelta(hours=1)
        batch = client.submit_many(jobs)
        assert [job.job_id for job in await recovery.expire(database)] == [batch.job_ids[1]]
        assert await recovery.expire(database) == []
        ((state, expired, deadline),) = sandbox.query("SELECT state, expired, deadline FROM chunks")
        assert (state, expired) == ("queued", 1)
        assert deadline > datetime.now(UTC)
        states = [outcome.state for outcome in client.batch_outcomes(batch.batch_id)]
        assert states == [JobState.QUEUED, JobState.EXPIRED, JobState.QUEUED, JobState.QUEUED]
        only = client.submit_many([{"kind": "sentiment", "text": "好", "deadline": past}])
        await recovery.expire(database)
        assert client.batch_progress(only.batch_id).finished
