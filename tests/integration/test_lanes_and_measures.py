"""Chat and bulk at one engine, rows that begin alike, and what is measured of all of it."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import mean
from typing import Any

import httpx

from pipeline import Client
from pipeline.engine.metrics import EngineMetrics, read_metrics
from pipeline.store import Database, answer_cache, endpoint_samples
from pipeline.store.endpoint_samples import EndpointSample
from schemas.results import JobState, Outcome
from tests.support.sandbox import Sandbox, Simulator, wait_for

MAX_NUM_SEQS = 64


@contextmanager
def running(sandbox: Sandbox, *arguments: str, speed: float = 10) -> Iterator[tuple[Client, Simulator]]:
    """A small engine, a worker a lane, recovery."""
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator("--max-num-seqs", str(MAX_NUM_SEQS), *arguments, speed=speed))
        models = sandbox.home / "models.toml"
        models.write_text(
            f'[models.chatglm3-6b]\nkinds = ["chat", "intent"]\nport = 1\nseats = {MAX_NUM_SEQS}\nchat_share = 0.125\n'
        )
        sandbox.environment["YYC3_MODELS_FILE"] = str(models)
        for lane in ("interactive", "bulk"):
            stack.enter_context(sandbox.worker(lane))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        yield client, simulator


def chat(number: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"讲个故事，第{number}个"}]
    return {"kind": "chat", "messages": messages, "sampling": {"max_tokens": 200}, **more}


def finished(client: Client, jobs: list[dict[str, Any]]) -> list[Outcome]:
    batch = client.submit_many(jobs)
    for _ in client.watch_batch(batch.batch_id):
        pass
    return list(client.batch_outcomes(batch.batch_id))


def metrics(simulator: Simulator) -> EngineMetrics:
    found = read_metrics(httpx.get(f"{simulator.url}/metrics").content, "chatglm3-6b")
    assert found is not None
    return found


def test_bulk_fills_the_engine_alone_and_leaves_seats_while_somebody_chats(sandbox: Sandbox) -> None:
    with running(sandbox) as (client, simulator):
        batch = client.submit_many([chat(i) for i in range(2_000)])
        wait_for(lambda: simulator.state()["running"] == MAX_NUM_SEQS, "a full engine")
        talk = client.submit(chat(-1, stream=True))
        wait_for(lambda: 0 < simulator.state()["running"] <= MAX_NUM_SEQS * 0.875 + 2, "free max_num_seqs")
        seen = []
        end = time.monotonic() + 3
        while time.monotonic() < end:
            client.result(client.submit(chat(-2, cache=False) | {"sampling": {"max_tokens": 5}}), 20)
            seen.append(simulator.state())
        assert mean(state["running"] for state in seen) < MAX_NUM_SEQS * 0.875 + 4
        assert mean(state["waiting"] for state in seen) < 4
        outcome = client.result(talk, 20)
        assert outcome.state is JobState.SUCCEEDED
        assert outcome.timings.first_token_seconds is not None
        for job_id in batch.job_ids:
            client.cancel(job_id)


def test_a_chat_is_before_bulk_rows_that_wait_in_the_engine(sandbox: Sandbox) -> None:
    with running(sandbox, speed=4) as (client, simulator):
        batch = client.submit_many([chat(i) for i in range(400)])
        wait_for(lambda: simulator.state()["waiting"] > 0, "a queue in the engine")
        outcome = client.result(client.submit(chat(-1) | {"sampling": {"max_tokens": 1}}), 20)
        assert outcome.timings.first_token_seconds is not None
        assert outcome.timings.first_token_seconds < 1.0
        for job_id in batch.job_ids:
            client.cancel(job_id)


def test_rows_that_begin_alike_are_neighbours_and_land_on_one_replica(sandbox: Sandbox) -> None:
    words = "客户在电话里说明了很长的情况，我们把全部的经过都写在这里，好让后面的人看得明白。" * 20
    calls = [f"第{n}通电话：{words}" for n in range(40)]
    jobs = [
        {
            "kind": "chat",
            "messages": [{"role": "user", "content": f"{call}\n问题{turn}"}],
            "sampling": {"max_tokens": 4},
        }
        for turn in range(8)
        for call in calls
    ]
    with ExitStack() as stack:
        simulators = [stack.enter_context(sandbox.simulator(speed=20)) for _ in range(2)]
        urls = [simulator.url for simulator in simulators]
        models = sandbox.home / "models.toml"
        models.write_text(
            f'[models.chatglm3-6b]\nkinds = ["chat"]\nport = 1\nseats = 16\nendpoints = {json.dumps(urls)}\n'
        )
        sandbox.environment |= {"YYC3_MODELS_FILE": str(models)}
        del sandbox.environment["AI_BASE_URL"], sandbox.environment["AI_MODEL"]
        stack.enter_context(sandbox.worker("bulk"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        found = finished(client, jobs)
        assert all(outcome.state is JobState.SUCCEEDED for outcome in found)
        homes: dict[str, set[str | None]] = {}
        for job, outcome in zip(jobs, found, strict=True):
            homes.setdefault(job["messages"][0]["content"].partition("：")[0], set()).add(outcome.endpoint)
        seen = [metrics(simulator) for simulator in simulators]
        hits, queries = (sum(getattr(one, name) or 0 for one in seen) for name in ("prefix_hits", "prefix_queries"))
        assert {outcome.endpoint for outcome in found} == set(urls)
        # The chunks of the batch cut each call's rows apart; within a chunk they stay together.
        assert hits / queries > 0.6, (hits, queries)


def test_what_is_measured_of_a_job_and_of_an_endpoint_is_stored_and_shown(sandbox: Sandbox) -> None:
    with running(sandbox, speed=1) as (client, simulator):
        jobs = [{"kind": "intent", "text": f"我要退款 {i}"} for i in range(64)] + [chat(i) for i in range(500)]
        batch = client.submit_many(jobs)
        sandbox.yyc3("queues")
        wait_for(lambda: sandbox.query("SELECT 1 FROM endpoint_samples WHERE rows_per_second > 0"), "a sample of work")
        shown = [json.loads(line) for line in sandbox.yyc3("queues", "--json").stdout.splitlines()]
        (queue,) = [line for line in shown if line.get("queue") == "chatglm3-6b.bulk"]
        assert queue["in_flight"] > 0
        assert queue["jobs_per_second"] > 0
        assert queue["seconds_to_empty"] > 0
        (sample,) = [line for line in shown if "limit_rows" in line and line["lane"] == "bulk"]
        assert sample["endpoint"] == simulator.url
        assert sample["state"] == "closed"
        assert sample["engine_running"] > 0
        assert sample["tokens_per_second"] > 0
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


async def test_samples_and_answers_are_kept_for_a_while_only(database: Database) -> None:
    sample = EndpointSample("w", "http://a", "m", "bulk", "closed", 1, 2, 3, 4.0, 5.0, 6, None, 0.0, 0.5)
    await endpoint_samples.write(database, [sample])
    assert await endpoint_samples.latest(database) == [sample]
    async with database.connection() as connection:
        await connection.execute("UPDATE endpoint_samples SET at = now() - interval '1 minute'")
        await connection.execute("INSERT INTO answer_cache VALUES (gen_random_uuid(), 1, 1), (gen_random_uuid(), 2, 1)")
        await connection.execute("UPDATE answer_cache SET created_at = now() - interval '31 days' WHERE job_id = 1")
    assert await endpoint_samples.latest(database) == []
    assert await endpoint_samples.forget_old(database) == 0
    async with database.connection() as connection:
        await connection.execute("UPDATE endpoint_samples SET at = now() - interval '8 days'")
    assert await endpoint_samples.forget_old(database) == 1
    assert await answer_cache.forget_old(database) == 1
