"""The same promises on every broker: embedded Valkey, Debian's Redis, Debian's RabbitMQ with quorum queues."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Producer
from pydantic import BaseModel

from pipeline import Client
from pipeline.broker import QUARANTINE, Publisher
from schemas.errors import BrokerUnavailable
from schemas.ids import JobId
from schemas.results import JobState
from tests.support.audit import audit
from tests.support.load import gated_simulator, sentiments, wait_until_done
from tests.support.sandbox import Sandbox, wait_for
from tests.support.servers import Broker, RabbitMQ

MODEL = "chatglm3-6b"
BULK = f"{MODEL}.bulk"
REPLIES = "crm.replies"


@pytest.fixture
def own_sandbox(sandbox: Sandbox, broker_of_its_own: Broker) -> Iterator[Sandbox]:
    """A sandbox whose messages go through a broker of its own; notifications and streams still go through Redis."""
    sandbox.environment |= {"BROKER_URL": broker_of_its_own.url, "YYC3_LEASE_SECONDS": "2"}
    yield sandbox
    with Connection(broker_of_its_own.url) as connection:
        channel: Any = connection.default_channel
        for queue in (MODEL, BULK, QUARANTINE, REPLIES, "yyc3.intake"):
            channel.queue_delete(queue)


@pytest.fixture
def client(own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("BROKER_URL", own_sandbox.environment["BROKER_URL"])
    with Client(database_url=own_sandbox.database_url, redis_url=own_sandbox.redis_url) as opened:
        yield opened


def test_jobs_of_both_lanes_are_done_and_no_message_is_left(
    own_sandbox: Sandbox, client: Client, broker_of_its_own: Broker
) -> None:
    with ExitStack() as stack:
        stack.enter_context(own_sandbox.simulator())
        for lane in ("interactive", "bulk"):
            stack.enter_context(own_sandbox.worker(lane))
        stack.enter_context(own_sandbox.process("pipeline.cli", "recover"))
        batch = client.submit_many(sentiments(300))
        singles = [client.submit(job) for job in sentiments(20)]
        for job_id in singles:
            assert client.result(job_id, 60).state is JobState.SUCCEEDED
        *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 300
        wait_until_done(own_sandbox, 320)
        found = [json.loads(line) for line in own_sandbox.yyc3("queues", "--json").stdout.splitlines()]
        assert {line["queue"] for line in found if "queue" in line} >= {MODEL, BULK}
        wait_for(lambda: broker_of_its_own.depth(MODEL) == 0, "the interactive queue to be empty")
    assert broker_of_its_own.depth(QUARANTINE) == 0


def test_jobs_of_a_killed_worker_are_done_by_another_one(own_sandbox: Sandbox, client: Client) -> None:
    with gated_simulator(own_sandbox, 30) as gate, own_sandbox.process("pipeline.cli", "recover"):
        with own_sandbox.worker("bulk") as first:
            client.submit_many(sentiments(300))
            wait_for(lambda: own_sandbox.settled() > 20 and gate.held_rows, "some outcomes, and requests in flight")
            first.kill()
        gate.open()
        with own_sandbox.worker("bulk"):
            wait_until_done(own_sandbox, 300)


def test_a_broker_that_is_away_and_returns_empty_loses_no_job(
    own_sandbox: Sandbox, client: Client, broker_of_its_own: Broker
) -> None:
    with ExitStack() as stack:
        gate = stack.enter_context(gated_simulator(own_sandbox, 30))
        for lane in ("interactive", "bulk"):
            stack.enter_context(own_sandbox.worker(lane))
        stack.enter_context(own_sandbox.process("pipeline.cli", "recover"))
        client.submit_many(sentiments(200))
        wait_for(lambda: own_sandbox.settled() > 20 and gate.held_rows, "some outcomes, and requests in flight")
        broker_of_its_own.end(lose_data=True)
        gate.open()
        accepted = [client.submit(sentiments(1)[0]) for _ in range(3)]
        client.submit_many(sentiments(100))
        running = "SELECT count(*) FROM chunks WHERE state = 'running'"
        wait_for(lambda: own_sandbox.query(running) == [(0,)], "every run to end")
        broker_of_its_own.start()
        wait_until_done(own_sandbox, 303)
        assert {client.get(job_id).state for job_id in accepted} == {JobState.SUCCEEDED}


def test_connections_that_are_cut_again_and_again_lose_no_job(
    own_sandbox: Sandbox, client: Client, broker_of_its_own: Broker
) -> None:
    with ExitStack() as stack:
        gate = stack.enter_context(gated_simulator(own_sandbox, 30))
        for lane in ("interactive", "bulk"):
            stack.enter_context(own_sandbox.worker(lane))
        stack.enter_context(own_sandbox.process("pipeline.cli", "recover"))
        client.submit_many(sentiments(300))
        for number in range(3):
            wait_for(
                lambda number=number: own_sandbox.settled() > 20 + 60 * number and gate.held_rows,  # type: ignore[misc]
                "some outcomes, and requests in flight",
            )
            broker_of_its_own.cut()
            client.submit(sentiments(1)[0])
            gate.allow(90)
        gate.open()
        wait_until_done(own_sandbox, 303)


def test_unprocessable_messages_are_quarantined_once_and_counted(
    own_sandbox: Sandbox, client: Client, broker_of_its_own: Broker
) -> None:
    canary = "CANARY 13800000000"
    with ExitStack() as stack:
        stack.enter_context(own_sandbox.simulator())
        worker = stack.enter_context(own_sandbox.worker("interactive"))
        stack.enter_context(own_sandbox.process("pipeline.cli", "recover"))
        app = Celery("other", broker=broker_of_its_own.url, set_as_current=False)
        broker_of_its_own.send_raw(MODEL, canary.encode())
        broker_of_its_own.send_raw(MODEL, json.dumps({"body": canary}).encode())
        with app.connection_for_write() as connection:
            for task, arguments in (("other.task", [canary]), ("yyc3.chunk", [canary]), ("yyc3.chunk", [])):
                message = app.amqp.create_task_message("id", task, arguments, {})
                Producer(connection).publish(
                    message.body, routing_key=MODEL, headers=message.headers, serializer="json", **message.properties
                )
        app.close()
        wait_for(lambda: broker_of_its_own.depth(QUARANTINE) == 5, "five messages to be quarantined")
        assert client.result(client.submit(sentiments(1)[0]), 60).state is JobState.SUCCEEDED
        assert not worker.ended
        assert canary not in worker.text
        assert worker.text.count("undecodable_message") == 5
        assert "5 messages" in own_sandbox.yyc3("queues").stdout
        assert broker_of_its_own.depth(MODEL) == 0


class Crm:
    """A program that submits jobs as Celery tasks and reads the replies."""

    def __init__(self, broker_url: str) -> None:
        self.replies: dict[str, set[str]] = {}
        self._app = Celery("crm", broker=broker_url, set_as_current=False)

    def submit(self, jobs: int) -> None:
        for number in range(jobs):
            job = {"kind": "sentiment", "text": f"第{number}位：谢谢", "job_key": f"{number}", "reply_to": REPLIES}
            self._app.send_task("yyc3.submit", kwargs=job, queue="yyc3.intake")

    def outcomes(self) -> int:
        """Read what arrived, and count the jobs with an outcome so far."""
        with (
            self._app.connection_for_read() as connection,
            connection.SimpleQueue(REPLIES, queue_opts={"durable": True}) as queue,
        ):
            while True:
                try:
                    message = queue.get(timeout=0.2)
                except queue.Empty:
                    return len(self.replies.get("outcome", ()))
                reply = message.payload[1]
                self.replies.setdefault(reply["event"], set()).add(reply["job_key"])
                message.ack()

    def close(self) -> None:
        self._app.close()


def test_the_intake_accepts_and_replies_and_a_killed_one_loses_no_job(
    own_sandbox: Sandbox, broker_of_its_own: Broker
) -> None:
    crm = Crm(broker_of_its_own.url)
    with ExitStack() as stack:
        stack.enter_context(own_sandbox.simulator())
        stack.enter_context(own_sandbox.worker("interactive"))
        stack.enter_context(own_sandbox.process("pipeline.cli", "recover"))
        with own_sandbox.process("workers.intake") as first:
            first.wait_until_ready("the intake")
            crm.submit(40)
            wait_for(lambda: own_sandbox.query("SELECT count(*) FROM jobs")[0][0] > 5, "some jobs")
            first.kill()
        # What it popped at that moment is lost on Redis: a caller sends again what was not accepted.
        crm.submit(40)
        second = stack.enter_context(own_sandbox.process("workers.intake"))
        second.wait_until_ready("the intake")
        wait_for(lambda: crm.outcomes() == 40, "an outcome of each job", 120)
    crm.close()
    assert crm.replies["accepted"] | crm.replies["outcome"] == {str(number) for number in range(40)}
    found = audit(own_sandbox.database_url, [JobId(row[0]) for row in own_sandbox.query("SELECT job_id FROM jobs")])
    assert (found.jobs, found.clean) == (40, True)


class _Reply(BaseModel):
    n: int


async def test_replies_reach_foreign_queues_however_they_were_declared(broker_of_its_own: Broker) -> None:
    if not isinstance(broker_of_its_own, RabbitMQ):
        pytest.skip("a queue of Redis has no declaration")
    publisher = Publisher(broker_of_its_own.url)
    queues = ("crm.mine", "crm.gone", "crm.full", "crm.new")
    with Connection(broker_of_its_own.url) as connection:
        channel: Any = connection.default_channel
        channel.queue_declare("crm.mine", exclusive=True, auto_delete=True)
        channel.queue_declare("crm.gone", durable=True)
        channel.queue_declare(
            "crm.full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"}, auto_delete=False
        )
        for queue in queues:
            await publisher.reply(queue, _Reply(n=1))
        channel.queue_delete("crm.gone")
        with pytest.raises(BrokerUnavailable):
            await publisher.reply("crm.full", _Reply(n=2))
        await publisher.reply("crm.gone", _Reply(n=2))
        depths = {queue: channel.queue_declare(queue, passive=True).message_count for queue in queues}
        assert depths == dict.fromkeys(queues, 1)
        for queue in queues:
            channel.queue_delete(queue)
    await publisher.close()
