"""The same promises on every broker: embedded Valkey, Debian's Redis, Debian's RabbitMQ with quorum queues."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

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
from tests.support.sandbox import Sandbox, wait_for
from tests.support.servers import RabbitMQ, Valkey

MODEL = "chatglm3-6b"
BULK = f"{MODEL}.bulk"
REPLIES = "crm.replies"
Broker = Valkey | RabbitMQ


@pytest.fixture
def here(sandbox: Sandbox, broker_of_its_own: Broker) -> Iterator[Sandbox]:
    """A place whose messages go through a broker of its own; notifier and streams go through Redis all the same."""
    sandbox.environment |= {"BROKER_URL": broker_of_its_own.url, "YYC3_LEASE_SECONDS": "2"}
    yield sandbox
    with Connection(broker_of_its_own.url) as connection:
        for queue in (MODEL, BULK, QUARANTINE, REPLIES, "yyc3.intake"):
            connection.default_channel.queue_delete(queue)


@pytest.fixture
def client(here: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("BROKER_URL", here.environment["BROKER_URL"])
    with Client(database_url=here.database_url, redis_url=here.redis_url) as opened:
        yield opened


def texts(count: int) -> list[dict[str, object]]:
    return [{"kind": "sentiment", "text": f"第{i}位客户说：太差了", "cache": False} for i in range(count)]


def settled(here: Sandbox) -> int:
    return here.query("SELECT count(*) FROM outcomes")[0][0]


def clean(here: Sandbox, jobs: int) -> None:
    """Each job has one outcome, and it is a success."""
    found = audit(here.database_url)
    assert (found.jobs, found.clean) == (jobs, True), found
    assert here.query("SELECT DISTINCT state FROM outcomes") == [("succeeded",)]


def finish(client: Client, here: Sandbox, jobs: int) -> None:
    wait_for(lambda: settled(here) == jobs, f"{jobs} outcomes", 60)
    wait_for(lambda: here.query("SELECT count(*) FROM chunks WHERE state <> 'done'") == [(0,)], "chunks to be done")
    clean(here, jobs)


def test_jobs_of_both_lanes_are_done_and_no_message_is_left(
    here: Sandbox, client: Client, broker_of_its_own: Broker
) -> None:
    with ExitStack() as stack:
        stack.enter_context(here.simulator())
        for lane in ("interactive", "bulk"):
            stack.enter_context(here.worker(lane))
        stack.enter_context(here.process("pipeline.cli", "recover"))
        batch = client.submit_many(texts(300))
        singles = [client.submit(job) for job in texts(20)]
        for job_id in singles:
            assert client.result(job_id, 30).state is JobState.SUCCEEDED
        *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 300
        finish(client, here, 320)
        found = [json.loads(line) for line in here.yyc3("queues", "--json").stdout.splitlines()]
        assert {line["queue"] for line in found if "queue" in line} >= {MODEL, BULK}
        wait_for(lambda: broker_of_its_own.depth(MODEL) == 0, "the interactive queue to be empty")
    assert broker_of_its_own.depth(QUARANTINE) == 0


def test_what_a_killed_worker_had_is_done_by_others(here: Sandbox, client: Client) -> None:
    with ExitStack() as stack:
        stack.enter_context(here.simulator("--max-num-seqs", "32", speed=1))
        stack.enter_context(here.process("pipeline.cli", "recover"))
        with here.worker("bulk") as first:
            client.submit_many(texts(300))
            wait_for(lambda: settled(here) > 20, "some outcomes")
            first.kill()
        stack.enter_context(here.worker("bulk"))
        finish(client, here, 300)


def test_a_broker_that_is_away_and_then_knows_nothing_loses_no_job(
    here: Sandbox, client: Client, broker_of_its_own: Broker
) -> None:
    with ExitStack() as stack:
        stack.enter_context(here.simulator("--max-num-seqs", "32", speed=1))
        for lane in ("interactive", "bulk"):
            stack.enter_context(here.worker(lane))
        stack.enter_context(here.process("pipeline.cli", "recover"))
        client.submit_many(texts(200))
        wait_for(lambda: settled(here) > 20, "some outcomes")
        broker_of_its_own.end(forget=True)
        accepted = [client.submit(texts(1)[0]) for _ in range(3)]
        client.submit_many(texts(100))
        wait_for(
            lambda: here.query("SELECT count(*) FROM chunks WHERE state = 'running'") == [(0,)], "what runs to end"
        )
        broker_of_its_own.start()
        finish(client, here, 303)
        assert {client.get(job_id).state for job_id in accepted} == {JobState.SUCCEEDED}


def test_connections_that_are_cut_time_and_again_lose_nothing(
    here: Sandbox, client: Client, broker_of_its_own: Broker
) -> None:
    with ExitStack() as stack:
        stack.enter_context(here.simulator("--max-num-seqs", "32", speed=2))
        for lane in ("interactive", "bulk"):
            stack.enter_context(here.worker(lane))
        stack.enter_context(here.process("pipeline.cli", "recover"))
        client.submit_many(texts(300))
        for number in range(3):
            wait_for(lambda number=number: settled(here) > 20 + 60 * number, "some outcomes")  # type: ignore[misc]
            broker_of_its_own.cut()
            client.submit(texts(1)[0])
        finish(client, here, 303)


def test_messages_that_nobody_can_take_are_put_aside_once_and_counted(
    here: Sandbox, client: Client, broker_of_its_own: Broker
) -> None:
    canary = "CANARY 13800000000"
    with ExitStack() as stack:
        stack.enter_context(here.simulator())
        worker = stack.enter_context(here.worker("interactive"))
        stack.enter_context(here.process("pipeline.cli", "recover"))
        app = Celery("other", broker=broker_of_its_own.url, set_as_current=False)
        for queue in (MODEL,):
            broker_of_its_own.send_raw(queue, canary.encode())
            broker_of_its_own.send_raw(queue, json.dumps({"body": canary}).encode())
        with app.connection_for_write() as connection:
            for task, arguments in (("other.task", [canary]), ("yyc3.chunk", [canary]), ("yyc3.chunk", [])):
                message = app.amqp.create_task_message("id", task, arguments, {})
                Producer(connection).publish(
                    message.body, routing_key=MODEL, headers=message.headers, serializer="json", **message.properties
                )
        app.close()
        wait_for(lambda: broker_of_its_own.depth(QUARANTINE) == 5, "five messages to be put aside")
        assert client.result(client.submit(texts(1)[0]), 30).state is JobState.SUCCEEDED
        assert not worker.ended
        assert canary not in worker.text
        assert worker.text.count("undecodable_message") == 5
        assert "5 messages" in here.yyc3("queues").stdout
        assert broker_of_its_own.depth(MODEL) == 0


def test_the_intake_takes_jobs_and_replies_and_a_killed_one_loses_none(
    here: Sandbox, client: Client, broker_of_its_own: Broker
) -> None:
    app = Celery("crm", broker=broker_of_its_own.url, set_as_current=False)
    got: dict[str, set[str]] = {}

    def heard() -> bool:
        with (
            app.connection_for_read() as connection,
            connection.SimpleQueue(REPLIES, queue_opts={"durable": True}) as queue,
        ):
            while True:
                try:
                    message = queue.get(timeout=0.2)
                except queue.Empty:
                    break
                reply = message.payload[1]
                got.setdefault(reply["event"], set()).add(reply["job_key"])
                message.ack()
        return len(got.get("outcome", ())) == 40

    def send() -> None:
        for number in range(40):
            job = {"kind": "sentiment", "text": f"第{number}位：谢谢", "job_key": f"{number}", "reply_to": REPLIES}
            app.send_task("yyc3.submit", kwargs=job, queue="yyc3.intake")

    with ExitStack() as stack:
        stack.enter_context(here.simulator())
        stack.enter_context(here.worker("interactive"))
        stack.enter_context(here.process("pipeline.cli", "recover"))
        with here.process("workers.intake") as first:
            wait_for(lambda: first.says('"ready"'), "the intake")
            send()
            wait_for(lambda: here.query("SELECT count(*) FROM jobs")[0][0] > 5, "some jobs")
            first.kill()
        # What it had popped in that moment is in nobody's hands on Redis: a caller sends again what was not accepted.
        send()
        second = stack.enter_context(here.process("workers.intake"))
        wait_for(lambda: second.says('"ready"'), "the intake")
        wait_for(heard, "an outcome of each", 100)
    app.close()
    assert got["accepted"] | got["outcome"] == {str(number) for number in range(40)}
    found = audit(here.database_url, [JobId(job_id) for (job_id,) in here.query("SELECT job_id FROM jobs")])
    assert (found.jobs, found.clean) == (40, True)


class _Said(BaseModel):
    n: int


async def test_replies_reach_queues_of_others_however_they_were_declared(broker_of_its_own: Broker) -> None:
    if not isinstance(broker_of_its_own, RabbitMQ):
        pytest.skip("a queue of Redis has no declaration")
    publisher = Publisher(broker_of_its_own.url)
    with Connection(broker_of_its_own.url) as connection, connection.channel() as channel:
        channel.queue_declare("crm.mine", exclusive=True, auto_delete=True)
        channel.queue_declare("crm.gone", durable=True)
        channel.queue_declare(
            "crm.full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"}, auto_delete=False
        )
        for queue in ("crm.mine", "crm.gone", "crm.full", "crm.new"):
            await publisher.reply(queue, _Said(n=1))
        channel.queue_delete("crm.gone")
        with pytest.raises(BrokerUnavailable):
            await publisher.reply("crm.full", _Said(n=2))
        await publisher.reply("crm.gone", _Said(n=2))
        depths = {
            queue: channel.queue_declare(queue, passive=True).message_count
            for queue in ("crm.mine", "crm.gone", "crm.full", "crm.new")
        }
        assert depths == dict.fromkeys(depths, 1)
        for queue in depths:
            channel.queue_delete(queue)
    await publisher.close()
