"""What an operator sees in Flower, and what nobody may see anywhere."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import redis

from pipeline import Client
from pipeline.local.client import SupervisorClient
from pipeline.local.servers import free_port
from tests.support.sandbox import Sandbox, wait_for

CANARY = "金丝雀7391canary"
LOGIN = ("operator", "secret-of-the-test")


class Flower:
    """Flower's pages, logged in."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, auth=LOGIN, trust_env=False, timeout=20)

    def answers(self) -> bool:
        try:
            return self.http.get("/healthcheck").status_code == 200
        except httpx.TransportError:
            return False

    def tasks(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/api/tasks?limit=1000").json()
        return found


@pytest.fixture
def flower(sandbox: Sandbox) -> Iterator[Flower]:
    port = free_port(15_555)
    sandbox.environment["YYC3_FLOWER_BASIC_AUTH"] = ":".join(LOGIN)
    with sandbox.process("pipeline.cli", "flower", "--port", str(port)) as started:
        shown = Flower(f"http://127.0.0.1:{port}")
        wait_for(lambda: shown.answers() or started.ended, "Flower")
        assert not started.ended, started.text
        yield shown
        shown.http.close()


def test_a_chunk_shows_its_progress_and_ends_in_flowers_own_state(sandbox: Sandbox, flower: Flower) -> None:
    with sandbox.simulator("--max-num-seqs", "8", speed=1), sandbox.worker("bulk"):
        with Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:
            batch = client.submit_many([{"kind": "sentiment", "text": f"第{i}句：太差了 {i * 31}"} for i in range(400)])

            def halfway() -> dict[str, Any] | None:
                shown = [
                    task for task in flower.tasks().values() if task["rows_done"] and task["rows_done"] < task["rows"]
                ]
                return shown[0] if shown else None

            seen = wait_for(halfway, "a chunk that is under way")
            assert seen["state"] == "STARTED"
            assert seen["model"] == "chatglm3-6b"
            assert seen["lane"] == "bulk"
            assert seen["batch"] == batch.batch_id
            assert seen["progress"] == f"{seen['rows_done']} / {seen['rows']}"
            *_, last = client.watch_batch(batch.batch_id)
            assert last.succeeded == 400

        def done() -> list[Any]:
            shown = [task for task in flower.tasks().values() if task["rows"]]
            ended = [task for task in shown if task["state"] == "SUCCESS" and task["rows_done"] == task["rows"]]
            return ended if sum(task["rows"] for task in ended) == 400 else []

        ended = wait_for(done, "all chunks in Flower")
        page = flower.http.get(f"/task/{ended[0]['uuid']}").text
        assert "chatglm3-6b" in page
        assert re.search(r"Rows done</dt>\s*<dd>\s*\d+", page)
        assert "Model" in flower.http.get("/tasks").text
        workers = flower.http.get("/api/workers?refresh=1").json()
        ((node, worker),) = workers.items()
        assert node.startswith("bulk.")
        assert [queue["name"] for queue in worker["active_queues"]] == ["chatglm3-6b.bulk"]


def test_without_a_password_flower_only_shows(sandbox: Sandbox) -> None:
    port = free_port(15_655)
    with sandbox.process("pipeline.cli", "flower", "--port", str(port)) as started:
        url = f"http://127.0.0.1:{port}"
        shown = Flower(url)
        wait_for(lambda: shown.answers() or started.ended, "Flower")
        shown.http.close()
        assert httpx.get(f"{url}/tasks", trust_env=False).status_code == 200
        assert httpx.post(f"{url}/api/worker/shutdown/x", trust_env=False).status_code in {401, 403}


def canaries(text: str) -> bool:
    return CANARY in text or json.dumps(CANARY)[1:-1] in text


def test_a_callers_words_are_in_postgres_only(servers: SupervisorClient, sandbox: Sandbox, flower: Flower) -> None:
    with ExitStack() as stack:
        monitor = stack.enter_context(sandbox.process("celery", "--broker", sandbox.redis_url, "events", "--dump"))
        simulator = stack.enter_context(sandbox.simulator("--fail", "500:0.3", "--fail", "nonsense:0.3"))
        workers = [stack.enter_context(sandbox.worker(lane)) for lane in ("interactive", "bulk")]
        recover = stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        jobs: list[dict[str, Any]] = [
            {"kind": "intent", "text": f"{CANARY} 我要退款", "tags": {"note": CANARY}, "idempotency_key": CANARY},
            {"kind": "sentiment", "text": f"{CANARY} 太差了"},
            {"kind": "chat", "messages": [{"role": "user", "content": CANARY}]},
            {"kind": "sentiment", "text": CANARY * 1_000},
        ]
        ids = [client.submit(job) for job in jobs]
        batch = client.submit_many([{"kind": "sentiment", "text": f"{CANARY} {i}"} for i in range(40)])
        for job_id in ids:
            client.result(job_id, 60)
        list(client.watch_batch(batch.batch_id))
        wait_for(lambda: len(flower.tasks()) >= 3, "tasks in Flower")
        with redis.Redis.from_url(sandbox.redis_url) as broker:
            everything = b"".join(broker.dump(key) or b"" for key in broker.scan_iter())
        assert not canaries(everything.decode("utf-8", "replace"))
        assert not canaries(json.dumps(flower.tasks(), ensure_ascii=False))
        for log in servers.folder.glob("*.log"):
            assert not canaries(log.read_text(errors="replace")), log
        for started in (monitor, simulator.started, *workers, recover):
            assert not canaries(started.text), started.log
        assert "task" in monitor.text and "yyc3.chunk" in monitor.text, "the events were seen"
    ((stored,),) = sandbox.query("SELECT count(*) FROM jobs WHERE request::text LIKE %s", f"%{CANARY}%")
    assert stored == 44
