"""Jobs as Celery messages: from a plain Celery producer and from a bare Redis client in Node, through a real worker."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery

from pipeline import Client
from schemas.errors import ErrorCode
from schemas.results import JobState, Outcome
from tests.support.sandbox import Sandbox, Started, wait_for

QUEUE = "crm.replies"
CANARY = "金丝雀在唱歌canary42"


class Caller:
    """A system that speaks Celery, and reads its replies from its own queue."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._app = Celery("crm", broker=sandbox.redis_url, set_as_current=False)
        self._redis = redis.Redis.from_url(sandbox.redis_url)
        self.seen: list[dict[str, Any]] = []

    def send(self, /, **arguments: Any) -> None:
        self._app.send_task("yyc3.submit", kwargs={"reply_to": QUEUE, **arguments}, queue="yyc3.intake")

    def cancel(self, **arguments: Any) -> None:
        self._app.send_task("yyc3.cancel", kwargs=arguments, queue="yyc3.intake")

    def replies(self, count: int, seconds: float = 20) -> list[dict[str, Any]]:
        """The next replies."""
        found: list[dict[str, Any]] = []
        end = time.monotonic() + seconds
        while len(found) < count:
            assert time.monotonic() < end, f"{count} replies, found {found}"
            popped: Any = self._redis.brpop([QUEUE], timeout=1)
            if popped:
                message = json.loads(popped[1])
                assert message["headers"]["task"] == "yyc3.reply"
                assert "hidden" in message["headers"]["kwargsrepr"]
                _, arguments, _ = json.loads(base64.b64decode(message["body"]))
                found.append(arguments)
        self.seen += found
        return found

    def close(self) -> None:
        self._app.close()
        self._redis.close()


@pytest.fixture
def caller(sandbox: Sandbox) -> Iterator[Caller]:
    made = Caller(sandbox)
    yield made
    made.close()


def intake(sandbox: Sandbox, stack: ExitStack) -> Started:
    started = stack.enter_context(sandbox.process("workers.intake"))
    wait_for(lambda: started.says(r"\"event\": ?\"ready\"") or started.ended, "the intake")
    assert not started.ended, started.text
    return started


@pytest.fixture
def running(sandbox: Sandbox) -> Iterator[Sandbox]:
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator())
        stack.enter_context(sandbox.worker("interactive"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        intake(sandbox, stack)
        yield sandbox


def test_a_message_is_accepted_and_its_outcome_follows(running: Sandbox, caller: Caller) -> None:
    caller.send(kind="intent", text="东西我不要了，我要退款", job_key="order-7")
    accepted, outcome = caller.replies(2)
    assert (accepted["event"], accepted["job_key"]) == ("accepted", "order-7")
    assert (outcome["event"], outcome["job_key"], outcome["job_id"]) == ("outcome", "order-7", accepted["job_id"])
    found = Outcome.model_validate(outcome["outcome"])
    assert found.state is JobState.SUCCEEDED
    assert found.result is not None
    assert running.query("SELECT count(*) FROM reply_outbox") == [(0,)]
    assert running.query("SELECT idempotency_key FROM idempotency_keys") == [("order-7",)]


def test_the_same_key_is_the_same_job_and_is_answered_again(running: Sandbox, caller: Caller) -> None:
    for _ in range(3):
        caller.send(kind="sentiment", text="谢谢", job_key="order-8")
        accepted, outcome = caller.replies(2)
        assert (accepted["event"], outcome["event"]) == ("accepted", "outcome")
    assert len({reply["job_id"] for reply in caller.seen}) == 1
    assert running.query("SELECT count(*) FROM jobs") == [(1,)]


@pytest.mark.parametrize(
    ("arguments", "key", "code", "says"),
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
def test_what_is_refused_is_said_in_a_sentence_that_names_the_field(
    running: Sandbox, caller: Caller, arguments: dict[str, Any], key: str | None, code: ErrorCode, says: str
) -> None:
    caller.send(**arguments)
    (refused,) = caller.replies(1)
    assert (refused["event"], refused["job_key"]) == ("refused", key)
    assert refused["error"]["code"] == code
    assert says in refused["error"]["message"]
    assert running.query("SELECT count(*) FROM jobs") == [(0,)]


def test_a_key_of_another_job_is_refused(running: Sandbox, caller: Caller) -> None:
    caller.send(kind="sentiment", text="谢谢", job_key="k")
    caller.replies(2)
    caller.send(kind="sentiment", text="太差", job_key="k")
    (refused,) = caller.replies(1)
    assert refused["error"]["code"] == ErrorCode.DUPLICATE_JOB


def test_a_job_is_cancelled_by_its_key_and_its_outcome_says_so(sandbox: Sandbox, caller: Caller) -> None:
    with ExitStack() as stack:
        intake(sandbox, stack)
        caller.send(kind="sentiment", text="谢谢", job_key="k", tenant="shop")
        (accepted,) = caller.replies(1)
        caller.cancel(job_key="k", reply_to=QUEUE)
        (refused,) = caller.replies(1)
        assert (refused["event"], refused["error"]["code"]) == ("refused", ErrorCode.JOB_NOT_FOUND)
        caller.cancel(job_key="k", tenant="shop")
        (outcome,) = caller.replies(1)
        assert (outcome["event"], outcome["job_id"]) == ("outcome", accepted["job_id"])
        assert outcome["outcome"]["state"] == "cancelled"
        caller.cancel(job_key="k", tenant="shop", colour="red", reply_to=QUEUE)
        (refused,) = caller.replies(1)
        assert "colour" in refused["error"]["message"]


def test_nobody_can_have_replies_sent_into_our_own_queues(running: Sandbox, caller: Caller) -> None:
    for queue in ("chatglm3-6b", "cogagent.bulk", "yyc3.intake", "_kombu.x", "unacked_mutex", "a b", "x" * 300):
        caller.send(kind="sentiment", text="好", job_key="q", reply_to=queue)
    caller.send(kind="sentiment", text="好", job_key="fine")
    caller.replies(2)
    assert running.query("SELECT count(*) FROM jobs") == [(1,)]


def test_words_are_hidden_from_events_inspection_and_logs(sandbox: Sandbox, caller: Caller) -> None:
    with ExitStack() as stack:
        # The database is away, so that the message stays in the worker while it is looked at.
        there = sandbox.environment["DATABASE_URL"]
        sandbox.environment["DATABASE_URL"] = "postgresql://nobody@127.0.0.1:9/none"
        started = intake(sandbox, stack)
        sandbox.environment["DATABASE_URL"] = there
        dump = stack.enter_context(sandbox.process("celery", "-b", sandbox.redis_url, "events", "--dump"))
        wait_for(lambda: dump.says("heartbeat"), "events")
        caller.send(kind="sentiment", text=CANARY, job_key="secret")
        wait_for(lambda: dump.says("task received"), "the event of the message")
        app = Celery("watch", broker=sandbox.redis_url, set_as_current=False)

        def active() -> dict[str, Any]:
            found: dict[str, Any] = app.control.inspect(timeout=1).active() or {}
            return found if any(found.values()) else {}

        assert "(redacted)" in json.dumps(wait_for(active, "the message in hand"))
        assert CANARY not in json.dumps(active(), ensure_ascii=False)
        app.close()
        client = redis.Redis.from_url(sandbox.redis_url)
        client.lpush("yyc3.intake", json.dumps({"body": CANARY, "headers": {}, "properties": {}}))
        client.lpush("yyc3.intake", foreign({"task": "yyc3.other"}, [[CANARY], {}, {}]))
        wait_for(lambda: started.text.count("its content is not logged") >= 1, "the broken message to be put aside")
        # It is the only copy of the job: a worker that stops hands the message back.
        assert started.terminate() == 0
        assert CANARY not in started.text
        assert CANARY not in dump.text
        assert "(redacted)" in dump.text
        client.close()
        sandbox.environment["DATABASE_URL"] = there
        stack.enter_context(sandbox.simulator())
        stack.enter_context(sandbox.worker("interactive"))
        intake(sandbox, stack)
        assert [reply["event"] for reply in caller.replies(2)] == ["accepted", "outcome"]


def test_messages_that_are_no_messages_are_put_aside_and_the_door_stays_open(sandbox: Sandbox, caller: Caller) -> None:
    job = {"kind": "sentiment", "text": CANARY, "job_key": "j", "reply_to": QUEUE}
    junk = [
        foreign({"task": "yyc3.submit"}, body) for body in ([], {}, "text", [[], [], {}], [5, job, {}], [[], "x", {}])
    ]
    junk += [foreign({"task": "yyc3.submit", **header}, [[], job, {}]) for header in ({"timelimit": "x"}, {"eta": "x"})]
    junk += [foreign({"task": "yyc3.submit", "id": {}}, [[], job, {}])]
    followers = {"callbacks": ["X"], "errbacks": ["X"], "chain": ["X"], "chord": "X"}
    with ExitStack() as stack:
        started = intake(sandbox, stack)
        with redis.Redis.from_url(sandbox.redis_url) as broker:
            for message in junk:
                broker.lpush("yyc3.intake", message)
            for number in range(70):  # more than there are threads
                broker.lpush(
                    "yyc3.intake", foreign({"task": "yyc3.submit"}, [[], {**job, "job_key": f"{number}"}, followers])
                )
            assert {reply["event"] for reply in caller.replies(70)} == {"accepted"}
            caller.send(kind="sentiment", text="谢谢", job_key="good", self="x")
            (refused,) = caller.replies(1)
            assert (refused["event"], refused["job_key"]) == ("refused", "good")
            assert "self" in refused["error"]["message"]
            wait_for(
                lambda: broker.llen("yyc3.intake") == 0 and not broker.exists("yyc3.unacked"), "nothing to be held"
            )
        assert not started.ended
        assert started.terminate() == 0
        assert CANARY not in started.text


def test_a_reply_that_cannot_be_sent_holds_up_no_other(sandbox: Sandbox, caller: Caller) -> None:
    with ExitStack() as stack:
        started = intake(sandbox, stack)
        with redis.Redis.from_url(sandbox.redis_url) as broker:
            broker.hset("crm.hash", "a", "b")
        for number, queue in enumerate([QUEUE, "crm.hash", QUEUE]):
            caller.send(kind="sentiment", text="谢谢", job_key=f"{number}", reply_to=queue)
        caller.replies(2)
        stack.enter_context(sandbox.simulator())
        stack.enter_context(sandbox.worker("interactive"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        assert {reply["job_key"] for reply in caller.replies(2)} == {"0", "2"}
        wait_for(
            lambda: sandbox.query("SELECT count(*) FROM reply_outbox") == [(0,)], "every debt to be paid or dropped"
        )
        assert started.says("a reply was dropped")


def test_a_killed_intake_loses_nothing_that_was_accepted(sandbox: Sandbox, caller: Caller) -> None:
    with ExitStack() as stack:
        first = intake(sandbox, stack)
        for number in range(50):
            caller.send(kind="sentiment", text=f"第{number}位：谢谢", job_key=f"order-{number}")
        accepted = caller.replies(50)
        first.kill()
        assert {reply["event"] for reply in accepted} == {"accepted"}
        stack.enter_context(sandbox.simulator())
        stack.enter_context(sandbox.worker("interactive"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        intake(sandbox, stack)
        replies = caller.replies(50, 30)
        assert {reply["event"] for reply in replies} == {"outcome"}
        assert {reply["job_key"] for reply in replies} == {f"order-{number}" for number in range(50)}
        wait_for(lambda: sandbox.query("SELECT count(*) FROM reply_outbox") == [(0,)], "every reply to be sent")


def foreign(headers: dict[str, Any], body: Any) -> str:
    """A Celery message as another implementation writes it."""
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
  reply_to: "crm.replies" }, {}];
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
let heard = "";
socket.on("data", (data) => { heard += data; if (heard.includes(":1\\r\\n")) socket.end(); });
socket.on("close", () => process.exit(heard.includes(":1") ? 0 : 1));
const login = url.password ? command("AUTH", decodeURIComponent(url.password)) : "";
socket.write(login + command("SELECT", url.pathname.slice(1) || "0") + command("LPUSH", "yyc3.intake", message));
"""


@pytest.mark.skipif(shutil.which("node") is None and "CI" not in os.environ, reason="Node is not here")
def test_a_bare_node_program_submits_and_the_outcome_can_be_asked_for_from_python(
    running: Sandbox, caller: Caller, tmp_path: Path
) -> None:
    program = tmp_path / "submit.mjs"
    program.write_text(NODE, encoding="utf-8")
    subprocess.run(["node", str(program)], env={**os.environ, "REDIS_URL": running.redis_url}, check=True, timeout=20)
    accepted, outcome = caller.replies(2)
    assert (accepted["event"], accepted["job_key"]) == ("accepted", "from-node")
    assert outcome["outcome"]["result"]["text"]
    with Client(database_url=running.database_url, redis_url=running.redis_url) as client:
        assert client.get(accepted["job_id"]).state is JobState.SUCCEEDED
