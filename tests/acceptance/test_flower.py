"""What Flower shows an operator, and that a caller's text is only in Postgres."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import redis
from aiohttp import web

from pipeline import Client
from pipeline.local.client import SupervisorClient
from tests.support.exclusive import reserve_port
from tests.support.faulty_proxy import BATCH, CHAT, Gate, Proxy, always
from tests.support.sandbox import Sandbox, Started, wait_for

CANARY = "金丝雀7391canary"
LOGIN = ("operator", "secret, of:the test")  # Flower itself would cut it at the comma


class Flower:
    """A running Flower, and its pages with a login."""

    def __init__(self, started: Started, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, auth=LOGIN, trust_env=False, timeout=20)
        wait_for(lambda: started.ended or self._answers(), "Flower")
        assert not started.ended, started.text

    def _answers(self) -> bool:
        try:
            return self.http.get("/healthcheck").status_code == 200
        except httpx.TransportError:
            return False

    def tasks(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/api/tasks?limit=1000").json()
        return found


@contextmanager
def running_flower(sandbox: Sandbox) -> Iterator[Flower]:
    port = reserve_port()
    with sandbox.process("pipeline.cli", "flower", "--port", str(port)) as started:
        shown = Flower(started, port)
        yield shown
        shown.http.close()


@pytest.fixture
def flower(sandbox: Sandbox) -> Iterator[Flower]:
    sandbox.environment["YYC3_FLOWER_BASIC_AUTH"] = ":".join(LOGIN)
    with running_flower(sandbox) as shown:
        yield shown


def test_a_chunk_shows_its_progress_and_ends_in_flowers_own_state(sandbox: Sandbox, flower: Flower) -> None:
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator())
        proxy = stack.enter_context(Proxy(simulator.url))
        gate = Gate(proxy, rows=1)  # passes the first request: later rows of its chunk wait until it opens
        sandbox.environment["AI_BASE_URL"] = proxy.url
        stack.enter_context(sandbox.worker("bulk"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        batch = client.submit_many([{"kind": "sentiment", "text": f"第{i}句：太差了 {i * 31}"} for i in range(400)])
        task = wait_for(lambda: chunk_with_some_rows_done(flower), "a chunk with some of its rows done")
        assert task is not None
        assert task["state"] == "STARTED"
        assert task["model"] == "chatglm3-6b"
        assert task["lane"] == "bulk"
        assert task["batch"] == batch.batch_id
        assert task["progress"] == f"{task['rows_done']} / {task['rows']}"
        gate.open()
        *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 400
        ended = wait_for(lambda: all_ended_chunks(flower, 400), "all chunks in Flower")
        page = flower.http.get(f"/task/{ended[0]['uuid']}").text
        assert "chatglm3-6b" in page
        assert re.search(r"Rows done</dt>\s*<dd>\s*\d+", page)
        assert "Model" in flower.http.get("/tasks").text
        workers = flower.http.get("/api/workers?refresh=1").json()
        ((node, worker),) = workers.items()
        assert node.startswith("bulk.")
        assert [queue["name"] for queue in worker["active_queues"]] == ["chatglm3-6b.bulk"]


def test_a_chunk_that_achieved_nothing_is_not_green(sandbox: Sandbox, flower: Flower) -> None:
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator())
        proxy = stack.enter_context(Proxy(simulator.url))
        sandbox.environment["AI_BASE_URL"] = proxy.url
        worker = stack.enter_context(sandbox.worker("bulk"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        redirect = always(lambda: web.Response(status=302, headers={"location": "https://login.example/secret"}))
        proxy.rules |= {BATCH: redirect, CHAT: redirect}
        client.submit_many([{"kind": "sentiment", "text": f"第{i}句：太差了 {i}", "cache": False} for i in range(40)])
        waiting = wait_for(lambda: in_state(flower, "RETRY"), "a chunk that waits")
        assert "redirects to login.example" in waiting[0]["exception"]
        assert in_state(flower, "SUCCESS") == []
        nonsense = always(lambda: web.json_response({"choices": [{"message": {}, "finish_reason": "content_filter"}]}))
        proxy.rules |= {BATCH: always(lambda: web.Response(status=404)), CHAT: nonsense}
        with sandbox.process("pipeline.cli", "recover"):
            failed = wait_for(lambda: in_state(flower, "FAILURE"), "a chunk whose rows all failed")
        assert "rows failed: content_filtered" in failed[0]["exception"]
        assert failed[0]["rows_failed"] > 0
        assert "Rows failed" in flower.http.get("/tasks").text
        assert "Traceback" not in worker.text, "it is expected: Flower shows it, the log is not filled with it"


def in_state(flower: Flower, state: str) -> list[dict[str, Any]]:
    return [task for task in flower.tasks().values() if task["rows"] and task["state"] == state]


def chunk_with_some_rows_done(flower: Flower) -> dict[str, Any] | None:
    tasks = [task for task in flower.tasks().values() if task["rows_done"] and task["rows_done"] < task["rows"]]
    return tasks[0] if tasks else None


def all_ended_chunks(flower: Flower, rows: int) -> list[dict[str, Any]]:
    """Return the chunks that Flower shows as successful and complete, if they have all rows together."""
    tasks = [task for task in flower.tasks().values() if task["rows"]]
    ended = [task for task in tasks if task["state"] == "SUCCESS" and task["rows_done"] == task["rows"]]
    return ended if sum(task["rows"] for task in ended) == rows else []


def test_the_whole_password_is_asked_for(flower: Flower) -> None:
    assert flower.http.get("/workers").status_code == 200
    for wrong in (("operator", "secret"), (" of", "the test"), ("operator", "")):
        assert httpx.get(f"{flower.url}/workers", auth=wrong, trust_env=False).status_code == 401


def test_without_a_password_flower_is_read_only(sandbox: Sandbox) -> None:
    with running_flower(sandbox) as flower:
        assert httpx.get(f"{flower.url}/tasks", trust_env=False).status_code == 200
        assert httpx.post(f"{flower.url}/api/worker/shutdown/x", trust_env=False).status_code in {401, 403}


def has_canary(text: str) -> bool:
    return CANARY in text or json.dumps(CANARY)[1:-1] in text


def test_a_callers_text_is_only_in_postgres(servers: SupervisorClient, sandbox: Sandbox, flower: Flower) -> None:
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
        assert not has_canary(everything.decode("utf-8", "replace"))
        assert not has_canary(json.dumps(flower.tasks(), ensure_ascii=False))
        for log in servers.folder.glob("*.log"):
            assert not has_canary(log.read_text(errors="replace")), log
        for started in (monitor, simulator.started, *workers, recover):
            assert not has_canary(started.text), started.log
        assert "task" in monitor.text, "the events were seen"
        assert "yyc3.chunk" in monitor.text, "the events were seen"
    ((stored,),) = sandbox.query("SELECT count(*) FROM jobs WHERE convert_from(request, 'UTF8') LIKE %s", f"%{CANARY}%")
    assert stored == 44
