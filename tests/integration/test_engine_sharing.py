"""How lanes and replicas share capacity: interactive jobs go first, rows with one prefix go to one replica."""

import json
import re
import time
from contextlib import ExitStack
from statistics import mean
from typing import Any

import httpx

from pipeline import Client
from schemas.results import JobState
from tests.support.sandbox import Sandbox, Simulator, wait_for
from tests.support.small_engine import MAX_NUM_SEQS, chat, running


def counter(simulator: Simulator, name: str) -> float:
    """Return a counter of the engine's metrics page."""
    page = httpx.get(f"{simulator.url}/metrics", trust_env=False).text
    (value,) = re.findall(rf"^vllm:{name}_total(?:{{[^}}]*}})? (\S+)$", page, re.M)
    return float(value)


def test_bulk_leaves_reserved_slots_free_under_interactive_demand(sandbox: Sandbox) -> None:
    with running(sandbox) as (client, simulator):
        batch = client.submit_many([chat(i) for i in range(2_000)])
        wait_for(lambda: simulator.state()["running"] == MAX_NUM_SEQS, "a full engine")
        streamed = client.submit(chat(-1, stream=True))
        wait_for(lambda: 0 < simulator.state()["running"] <= MAX_NUM_SEQS * 0.875 + 2, "free slots")
        states = []
        end = time.monotonic() + 3
        while time.monotonic() < end:
            client.result(client.submit(chat(-2, cache=False) | {"sampling": {"max_tokens": 5}}), 20)
            states.append(simulator.state())
        assert mean(state["running"] for state in states) < MAX_NUM_SEQS * 0.875 + 4
        assert mean(state["waiting"] for state in states) < 4
        outcome = client.result(streamed, 20)
        assert outcome.state is JobState.SUCCEEDED
        assert outcome.timings.first_token_seconds is not None
        for job_id in batch.job_ids:
            client.cancel(job_id)


def test_a_chat_goes_before_bulk_rows_that_wait_in_the_engine(sandbox: Sandbox) -> None:
    with running(sandbox, speed=4) as (client, simulator):
        batch = client.submit_many([chat(i) for i in range(400)])
        wait_for(lambda: simulator.state()["waiting"] > 0, "a queue in the engine")
        outcome = client.result(client.submit(chat(-1) | {"sampling": {"max_tokens": 1}}), 20)
        assert outcome.timings.first_token_seconds is not None
        assert outcome.timings.first_token_seconds < 1.0
        for job_id in batch.job_ids:
            client.cancel(job_id)


def test_rows_with_one_prefix_go_to_one_replica(sandbox: Sandbox) -> None:
    words = "客户在电话里说明了很长的情况，我们把全部的经过都写在这里，好让后面的人看得明白。" * 20
    calls = [f"第{n}通电话：{words}" for n in range(40)]
    jobs: list[dict[str, Any]] = [
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
            f'[models.chatglm3-6b]\nkinds = ["chat"]\nport = 1\nmax_num_seqs = 16\nendpoints = {json.dumps(urls)}\n'
        )
        sandbox.environment |= {"YYC3_MODELS_FILE": str(models)}
        del sandbox.environment["AI_BASE_URL"], sandbox.environment["AI_MODEL"]
        stack.enter_context(sandbox.worker("bulk"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        batch = client.submit_many(jobs)
        *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == len(jobs)
        found = list(client.batch_outcomes(batch.batch_id))
        assert all(outcome.state is JobState.SUCCEEDED for outcome in found)
        hits = sum(counter(simulator, "prefix_cache_hits") for simulator in simulators)
        lookups = sum(counter(simulator, "prefix_cache_queries") for simulator in simulators)
        assert {outcome.endpoint for outcome in found} == set(urls)
        # The chunks of the batch cut each call's rows apart; within a chunk they stay together.
        assert hits / lookups > 0.6, (hits, lookups)
