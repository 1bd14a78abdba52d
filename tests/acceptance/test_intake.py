"""Jobs as Celery messages: from a plain Celery producer and from a bare Redis client in Node, through a real worker."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery

from pipeline import Client
from pipeline.broker import QUARANTINE
from schemas.errors import ErrorCode
from schemas.intake import CANCEL_TASK, INTAKE_QUEUE, SUBMIT_TASK
from schemas.results import JobState, Outcome
from tests.support.sandbox import Sandbox, Started, wait_for

CANARY = "金丝雀在唱歌canary42"


class Caller:
    """A program that uses Celery, and reads its replies from a queue of its own."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._app = Celery("crm", broker=sandbox.redis_url, set_as_current=False)
        self._redis = redis.Redis.from_url(sandbox.redis_url)
        self.queue = f"crm.replies.{uuid4().hex}"
        self.seen: list[dict[str, Any]] = []

    def send(self, options: dict[str, Any] | None = None, /, **arguments: Any) -> None:
        named = {"reply_to": self.queue, **arguments}
        self._app.send_task(SUBMIT_TASK, kwargs=named, queue=INTAKE_QUEUE, **(options or {}))

    def cancel(self, **arguments: Any) -> None:
        self._app.send_task(CANCEL_TASK, kwargs=arguments, queue=INTAKE_QUEUE)

    def replies(self, count: int, seconds: float = 20) -> list[dict[str, Any]]:
        """Return the next replies."""
        found: list[dict[str, Any]] = []
        end = time.monotonic() + seconds
        while len(found) < count:
            assert time.monotonic() < end, f"{count} replies, found {found}"
            popped: Any = self._redis.brpop([self.queue], timeout=1)
            if popped:
                message = json.loads(popped[1])
                assert message["headers"]["task"] == "yyc3.reply"
                assert "(redacted)" in message["headers"]["kwargsrepr"]
                _, arguments, _ = json.loads(base64.b64decode(message["body"]))
                found.append(arguments)
        self.seen += found
        return found

    def close(self) -> None:
        self._app.close()
        self._redis.close()


@dataclass(frozen=True)
class Running:
    """An intake, a worker, a simulator and recovery, which the tests of this module share."""

    sandbox: Sandbox
    intake: Started

    def jobs(self) -> int:
        """Return how many jobs are stored."""
        ((count,),) = self.sandbox.query("SELECT count(*) FROM jobs")
        return int(count)

    def wait_until_all_replies_are_sent(self) -> None:
        wait_for(lambda: pending_replies(self.sandbox) == 0, "every reply to be sent")


def pending_replies(sandbox: Sandbox) -> int:
    ((count,),) = sandbox.query("SELECT count(*) FROM reply_outbox")
    return int(count)


def start_intake(sandbox: Sandbox, stack: ExitStack) -> Started:
    started = stack.enter_context(sandbox.process("workers.intake"))
    started.wait_until_ready("the intake")
    return started


def start_worker(sandbox: Sandbox, stack: ExitStack) -> None:
    stack.enter_context(sandbox.simulator())
    stack.enter_context(sandbox.worker("interactive"))


@pytest.fixture(scope="module")
def running(module_sandbox: Sandbox) -> Iterator[Running]:
    with ExitStack() as stack:
        start_worker(module_sandbox, stack)
        stack.enter_context(module_sandbox.process("pipeline.cli", "recover"))
        yield Running(module_sandbox, start_intake(module_sandbox, stack))


@pytest.fixture
def caller(running: Running) -> Iterator[Caller]:
    """A caller of the shared intake."""
    made = Caller(running.sandbox)
    yield made
    made.close()


@pytest.fixture
def own_caller(sandbox: Sandbox) -> Iterator[Caller]:
    """A caller of a test that starts and stops an intake itself."""
    made = Caller(sandbox)
    yield made
    made.close()


def test_a_message_is_accepted_and_its_outcome_follows(running: Running, caller: Caller) -> None:
    caller.send(kind="intent", text="东西我不要了，我要退款", job_key="order-7")
    accepted, outcome = caller.replies(2)
    assert (accepted["event"], accepted["job_key"]) == ("accepted", "order-7")
    assert (outcome["event"], outcome["job_key"], outcome["job_id"]) == ("outcome", "order-7", accepted["job_id"])
    found = Outcome.model_validate(outcome["outcome"])
    assert found.state is JobState.SUCCEEDED
    assert found.result is not None
    running.wait_until_all_replies_are_sent()
    stored = running.sandbox.query("SELECT idempotency_key FROM idempotency_keys WHERE job_id = %s", accepted["job_id"])
    assert stored == [("order-7",)]


def test_the_same_key_is_the_same_job_and_is_answered_again(running: Running, caller: Caller) -> None:
    before = running.jobs()
    for _ in range(3):
        caller.send(kind="sentiment", text="谢谢", job_key="order-8")
        accepted, outcome = caller.replies(2)
        assert (accepted["event"], outcome["event"]) == ("accepted", "outcome")
    assert len({reply["job_id"] for reply in caller.seen}) == 1
    assert running.jobs() == before + 1


@pytest.mark.parametrize(
    ("arguments", "key", "code", "field"),
    [
        ({"kind": "intent", "job_key": "a"}, "a", ErrorCode.INVALID_JOB, "text"),
        ({"kind": "weather", "text": "x", "job_key": "b"}, "b", ErrorCode.INVALID_JOB, "kind"),
        ({"kind": "intent", "text": "x"}, None, ErrorCode.INVALID_JOB, "job_key"),
        ({"kind": "intent", "text": "x", "job_key": 5}, None, ErrorCode.INVALID_JOB, "job_key"),
        ({"kind": "intent", "text": "x", "job_key": "c", "model": "gpt"}, "c", ErrorCode.UNKNOWN_MODEL, "model"),
        (
            {"kind": "intent", "text": "x", "job_key": "d", "idempotency_key": "d"},
            "d",
            ErrorCode.INVALID_JOB,
            "idempotency_key",
        ),
        (
            {"kind": "vision", "question": "x", "images": ["data:image/svg+xml;base64,PHN2Zz4="], "job_key": "e"},
            "e",
            ErrorCode.INVALID_JOB,
            "images.0",
        ),
    ],
)
def test_a_refusal_is_one_sentence_that_names_the_field(
    running: Running, caller: Caller, arguments: dict[str, Any], key: str | None, code: ErrorCode, field: str
) -> None:
    before = running.jobs()
    caller.send(**arguments)
    (refused,) = caller.replies(1)
    assert (refused["event"], refused["job_key"]) == ("refused", key)
    assert refused["error"]["code"] == code
    assert field in refused["error"]["message"]
    assert running.jobs() == before


@pytest.mark.parametrize("field", ["text", "tags", "job_key", "tenant"])
def test_half_a_character_is_refused_with_its_field(running: Running, caller: Caller, field: str) -> None:
    """A cut in the middle of an emoji: Python and JavaScript both send it as an escape."""
    before, half = running.jobs(), "太差了\ud83d"
    caller.send(
        **{"kind": "sentiment", "text": "好", "job_key": "half", field: {"a": half} if field == "tags" else half}
    )
    (refused,) = caller.replies(1)
    assert refused["event"] == "refused"
    assert field in refused["error"]["message"]
    assert running.jobs() == before


def test_a_message_for_later_is_refused_and_not_held(running: Running, caller: Caller) -> None:
    before = running.jobs()
    caller.send({"countdown": 3_600}, kind="sentiment", text="好", job_key="later")
    (refused,) = caller.replies(1)
    assert (refused["event"], refused["job_key"]) == ("refused", "later")
    assert "eta" in refused["error"]["message"]
    assert running.jobs() == before


def test_a_message_that_expired_on_its_way_is_answered(caller: Caller) -> None:
    caller.send({"expires": datetime.now(UTC) - timedelta(minutes=1)}, kind="sentiment", text="好", job_key="too late")
    accepted, outcome = caller.replies(2)
    assert accepted["event"] == "accepted"
    assert outcome["outcome"]["state"] == JobState.EXPIRED
    caller.send({"expires": datetime.now(UTC) + timedelta(hours=1)}, kind="sentiment", text="好", job_key="in time")
    _, outcome = caller.replies(2)
    assert outcome["outcome"]["state"] == JobState.SUCCEEDED


def test_a_key_of_another_job_is_refused(caller: Caller) -> None:
    caller.send(kind="sentiment", text="谢谢", job_key="k")
    caller.replies(2)
    caller.send(kind="sentiment", text="太差", job_key="k")
    (refused,) = caller.replies(1)
    assert refused["error"]["code"] == ErrorCode.DUPLICATE_JOB


def test_a_reply_queue_that_the_pipeline_uses_is_refused(running: Running, caller: Caller) -> None:
    reserved = ("chatglm3-6b", "cogagent.bulk", "yyc3.intake", "_kombu.x", "unacked_mutex", "a b", "x" * 300)
    before = running.jobs()
    for number, queue in enumerate(reserved):
        caller.send(kind="sentiment", text="好", job_key=f"reserved-{number}", reply_to=queue)
    wait_for(
        lambda: running.intake.text.count("a job was refused, and its message names no reply queue") == len(reserved),
        "every message to be refused",
    )
    caller.send(kind="sentiment", text="好", job_key="fine")
    caller.replies(2)
    assert running.jobs() == before + 1


def test_a_job_is_cancelled_by_its_key_and_its_outcome_is_sent(sandbox: Sandbox, own_caller: Caller) -> None:
    caller = own_caller
    with ExitStack() as stack:
        start_intake(sandbox, stack)
        caller.send(kind="sentiment", text="谢谢", job_key="k", tenant="shop")
        (accepted,) = caller.replies(1)
        caller.cancel(job_key="k", reply_to=caller.queue)
        (refused,) = caller.replies(1)
        assert (refused["event"], refused["error"]["code"]) == ("refused", ErrorCode.JOB_NOT_FOUND)
        caller.cancel(job_key="k", tenant="shop")
        (outcome,) = caller.replies(1)
        assert (outcome["event"], outcome["job_id"]) == ("outcome", accepted["job_id"])
        assert outcome["outcome"]["state"] == "cancelled"
        caller.cancel(job_key="k", tenant="shop", colour="red", reply_to=caller.queue)
        (refused,) = caller.replies(1)
        assert "colour" in refused["error"]["message"]


def test_a_callers_text_is_redacted_in_events_inspection_and_logs(sandbox: Sandbox, own_caller: Caller) -> None:
    with ExitStack() as stack:
        # The database is unavailable, so the message stays in the intake while it is inspected.
        database_url = sandbox.environment["DATABASE_URL"]
        sandbox.environment["DATABASE_URL"] = "postgresql://nobody@127.0.0.1:9/none"
        intake = start_intake(sandbox, stack)
        sandbox.environment["DATABASE_URL"] = database_url
        dump = stack.enter_context(sandbox.process("celery", "-b", sandbox.redis_url, "events", "--dump"))
        dump.wait_until_logged("heartbeat", "events")
        own_caller.send(kind="sentiment", text=CANARY, job_key="secret")
        dump.wait_until_logged("task received", "the event of the message")
        assert_active_tasks_are_redacted(sandbox.redis_url)
        with redis.Redis.from_url(sandbox.redis_url) as broker:
            broker.lpush(INTAKE_QUEUE, json.dumps({"body": CANARY, "headers": {}, "properties": {}}))
            broker.lpush(INTAKE_QUEUE, foreign({"task": "yyc3.other"}, [[CANARY], {}, {}]))
        for line in ("an item that is not a message was quarantined", "a message was quarantined; its content is not"):
            intake.wait_until_logged(line, line)
        # The message is the only copy of its job: an intake that stops returns it to the queue.
        assert intake.terminate() == 0
        assert CANARY not in intake.text
        assert CANARY not in dump.text
        assert "(redacted)" in dump.text
        start_worker(sandbox, stack)
        start_intake(sandbox, stack)
        assert [reply["event"] for reply in own_caller.replies(2)] == ["accepted", "outcome"]


def assert_active_tasks_are_redacted(redis_url: str) -> None:
    app = Celery("watch", broker=redis_url, set_as_current=False)

    def active() -> dict[str, Any]:
        found: dict[str, Any] = app.control.inspect(timeout=1).active() or {}
        return found if any(found.values()) else {}

    shown = json.dumps(wait_for(active, "the message in the intake"), ensure_ascii=False)
    app.close()
    assert "(redacted)" in shown
    assert CANARY not in shown


def test_invalid_messages_are_quarantined_and_the_intake_continues(sandbox: Sandbox, own_caller: Caller) -> None:
    job = {"kind": "sentiment", "text": CANARY, "job_key": "j", "reply_to": own_caller.queue}
    bodies: list[Any] = [[], {}, "text", [[], [], {}], [5, job, {}], [[], "x", {}]]
    junk = [foreign({"task": "yyc3.submit"}, body) for body in bodies]
    junk += [foreign({"task": "yyc3.submit", "timelimit": "x"}, [[], job, {}])]
    junk += [foreign({"task": "yyc3.submit", "id": {}}, [[], job, {}])]
    callbacks = {"callbacks": ["X"], "errbacks": ["X"], "chain": ["X"], "chord": "X"}
    with ExitStack() as stack:
        intake = start_intake(sandbox, stack)
        with redis.Redis.from_url(sandbox.redis_url) as broker:
            for message in junk:
                broker.lpush(INTAKE_QUEUE, message)
            for number in range(70):  # more than the intake has threads
                message = foreign({"task": "yyc3.submit"}, [[], {**job, "job_key": f"{number}"}, callbacks])
                broker.lpush(INTAKE_QUEUE, message)
            assert {reply["event"] for reply in own_caller.replies(70)} == {"accepted"}
            own_caller.send(kind="sentiment", text="谢谢", job_key="good", self="x")
            (refused,) = own_caller.replies(1)
            assert (refused["event"], refused["job_key"]) == ("refused", "good")
            assert "self" in refused["error"]["message"]
            wait_for(
                lambda: broker.llen(INTAKE_QUEUE) == 0 and not broker.exists("yyc3.unacked"),
                "no message in the queue or unacknowledged",
            )
            assert broker.llen(QUARANTINE) == len(junk)
        assert not intake.ended
        assert intake.terminate() == 0
        assert CANARY not in intake.text


def test_a_reply_that_cannot_be_sent_delays_no_other(sandbox: Sandbox, own_caller: Caller) -> None:
    with ExitStack() as stack:
        intake = start_intake(sandbox, stack)
        with redis.Redis.from_url(sandbox.redis_url) as broker:
            broker.hset("crm.hash", "a", "b")
        for number, queue in enumerate([own_caller.queue, "crm.hash", own_caller.queue]):
            own_caller.send(kind="sentiment", text="谢谢", job_key=f"{number}", reply_to=queue)
        own_caller.replies(2)
        start_worker(sandbox, stack)
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        assert {reply["job_key"] for reply in own_caller.replies(2)} == {"0", "2"}
        wait_for(lambda: pending_replies(sandbox) == 0, "every reply to be sent or dropped")
        assert intake.logged("a reply was dropped")


def test_a_killed_intake_loses_nothing_that_was_accepted(sandbox: Sandbox, own_caller: Caller) -> None:
    with ExitStack() as stack:
        first = start_intake(sandbox, stack)
        for number in range(50):
            own_caller.send(kind="sentiment", text=f"第{number}位：谢谢", job_key=f"order-{number}")
        accepted = own_caller.replies(50)
        first.kill()
        assert {reply["event"] for reply in accepted} == {"accepted"}
        start_worker(sandbox, stack)
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        start_intake(sandbox, stack)
        replies = own_caller.replies(50, 30)
        assert {reply["event"] for reply in replies} == {"outcome"}
        assert {reply["job_key"] for reply in replies} == {f"order-{number}" for number in range(50)}
        wait_for(lambda: pending_replies(sandbox) == 0, "every reply to be sent")


def foreign(headers: dict[str, Any], body: Any) -> str:
    """Return a Celery message as another implementation writes it."""
    identity = str(uuid4())
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps(body).encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"lang": "js", "id": identity, **headers},
            "properties": {
                "correlation_id": identity,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "yyc3.intake"},
                "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
            },
        }
    )


NODE = """
import net from "node:net";
import { randomUUID } from "node:crypto";
const url = new URL(process.env.REDIS_URL);
const id = randomUUID();
const body = [[], { kind: "chat", messages: [{ role: "user", content: "你好" }], job_key: "from-node",
  reply_to: process.env.REPLY_QUEUE }, {}];
const message = JSON.stringify({
  body: Buffer.from(JSON.stringify(body)).toString("base64"),
  "content-encoding": "utf-8",
  "content-type": "application/json",
  headers: { lang: "js", task: "yyc3.submit", id },
  properties: { correlation_id: id, delivery_mode: 2, delivery_info: { exchange: "", routing_key: "yyc3.intake" },
    body_encoding: "base64", delivery_tag: randomUUID() },
});
const command = (...parts) =>
  `*${parts.length}\\r\\n` + parts.map((part) => `$${Buffer.byteLength(part)}\\r\\n${part}\\r\\n`).join("");
const socket = net.connect(Number(url.port), url.hostname);
let received = "";
socket.on("data", (data) => { received += data; if (received.includes(":1\\r\\n")) socket.end(); });
socket.on("close", () => process.exit(received.includes(":1") ? 0 : 1));
const login = url.password ? command("AUTH", decodeURIComponent(url.password)) : "";
socket.write(login + command("SELECT", url.pathname.slice(1) || "0") + command("LPUSH", "yyc3.intake", message));
"""


@pytest.mark.skipif(shutil.which("node") is None and "CI" not in os.environ, reason="Node is not installed")
def test_a_bare_node_program_submits_and_python_reads_the_outcome(
    running: Running, caller: Caller, tmp_path: Path
) -> None:
    program = tmp_path / "submit.mjs"
    program.write_text(NODE, encoding="utf-8")
    environment = {**os.environ, "REDIS_URL": running.sandbox.redis_url, "REPLY_QUEUE": caller.queue}
    subprocess.run(["node", str(program)], env=environment, check=True, timeout=20)
    accepted, outcome = caller.replies(2)
    assert (accepted["event"], accepted["job_key"]) == ("accepted", "from-node")
    assert outcome["outcome"]["result"]["text"]
    with Client(database_url=running.sandbox.database_url, redis_url=running.sandbox.redis_url) as client:
        assert client.get(accepted["job_id"]).state is JobState.SUCCEEDED
