"""The life of a batch with a worker and an engine: paused, resumed, cancelled, retried, expired, and read while it runs."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from openai.types import Batch
from openai.types.chat import ChatCompletion

from pipeline import Client
from pipeline.store import Database, claims
from pipeline.store.connecting import parse_url
from schemas.batches import BatchStatus, BatchView
from schemas.doorbells import Lane
from schemas.errors import BatchNotFound, InvalidJob
from schemas.ids import BatchId, JobId
from tests.integration.batches.conftest import Write, openai_line
from tests.support.sandbox import Sandbox, Simulator, wait_for
from tests.support.store_helpers import LEASE

SLOW = ("--max-num-seqs", "8")


@contextmanager
def running(sandbox: Sandbox, *arguments: str, speed: float = 1_000) -> Iterator[Simulator]:
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator(*arguments, speed=speed))
        stack.enter_context(sandbox.worker("bulk"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        yield simulator


def ended(client: Client, batch_id: BatchId) -> BatchView:
    def look() -> BatchView | None:
        found = client.batches.get(batch_id)
        return found if found.status.is_final else None

    found = wait_for(look, "the batch to end")
    assert found is not None
    return found


def test_a_batch_runs_to_its_end_and_openai_reads_its_output(sandbox: Sandbox, client: Client, write: Write) -> None:
    lines = [
        openai_line(0),
        openai_line(1, n=2, temperature=1),
        openai_line(2, logprobs=True, top_logprobs=2),
        "{broken",
    ]
    with running(sandbox):
        found = client.batches.create(write(lines))
        done = ended(client, found.batch_id)
    assert (done.status, done.succeeded, done.request_counts.total) == (BatchStatus.COMPLETED, 3, 4)
    output = {line["custom_id"]: line for line in client.batches.output(found.batch_id)}
    assert set(output) == {"r0", "r1", "r2"}
    for line in output.values():
        assert (line["response"]["status_code"], line["error"]) == (200, None)
        completion = ChatCompletion.model_validate(line["response"]["body"], strict=False)
        assert completion.choices[0].message.content
        assert completion.usage is not None
    assert len(output["r1"]["response"]["body"]["choices"]) == 2
    assert output["r2"]["response"]["body"]["choices"][0]["logprobs"]["content"]
    (error,) = client.batches.errors(found.batch_id)
    assert (error["custom_id"], error["response"], error["error"]["line"]) == (None, None, 4)
    assert Batch.model_validate(
        {
            "id": "b",
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "input_file_id": "f",
            "completion_window": "24h",
            "created_at": int(done.created_at.timestamp()),
            "status": done.status.value,
            "request_counts": done.request_counts.model_dump(),
        }
    )


def test_rows_of_approximate_usage_share_requests_and_have_their_own_bodies(
    sandbox: Sandbox, client: Client, write: Write
) -> None:
    with running(sandbox) as simulator:
        found = client.batches.create(write(64), usage_mode="approximate")
        ended(client, found.batch_id)
        assert simulator.state()["requests"] < 40
    bodies = [line["response"]["body"] for line in client.batches.output(found.batch_id)]
    assert len(bodies) == 64
    assert all(len(body["choices"]) == 1 and body["choices"][0]["index"] == 0 for body in bodies)
    assert all(body["usage"]["total_tokens"] > 0 for body in bodies)


def test_two_seconds_after_a_pause_no_row_is_sent_and_it_goes_on_where_it_was(
    sandbox: Sandbox, client: Client, write: Write
) -> None:
    lines = [openai_line(number, max_tokens=64, temperature=1) for number in range(400)]
    with running(sandbox, *SLOW, speed=10) as simulator:
        found = client.batches.create(write(lines))
        wait_for(lambda: client.batches.get(found.batch_id).succeeded > 8, "the first rows")
        paused = client.batches.pause(found.batch_id, by_whom="operator", reason="Monday peak")
        assert (paused.paused_by, paused.pause_reason) == ("operator", "Monday peak")
        time.sleep(2)  # the promise itself
        sent = simulator.state()["requests"]
        wait_for(lambda: client.batches.get(found.batch_id).running == 0, "rows in flight to end")
        assert sandbox.query("SELECT count(*) FROM chunks WHERE state = 'running'") == [(0,)]
        assert simulator.state()["requests"] == sent
        before = client.batches.get(found.batch_id)
        assert (before.status, before.failed) == (BatchStatus.IN_PROGRESS, 0)
        assert 0 < before.succeeded < 400
        other = client.batches.create(write([openai_line(9_000)], "other"), tenant="other")
        assert ended(client, other.batch_id).succeeded == 1, "its seats are others'"
        assert simulator.state()["requests"] == sent + 1
        client.batches.resume(found.batch_id)
        done = ended(client, found.batch_id)
    assert (done.succeeded, done.paused_at) == (400, None)
    assert sandbox.query("SELECT count(*) FROM failed_attempts") == [(0,)]


def test_a_cancel_stops_rows_in_flight_and_a_retry_runs_exactly_those(
    sandbox: Sandbox, client: Client, write: Write
) -> None:
    lines = [openai_line(number, max_tokens=64, temperature=1) for number in range(300)]
    with running(sandbox, *SLOW, speed=10) as simulator:
        found = client.batches.create(write(lines))
        wait_for(lambda: client.batches.get(found.batch_id).succeeded > 8, "the first rows")
        client.batches.cancel(found.batch_id)
        wait_for(lambda: simulator.state()["running"] == 0, "the engine to stop")
        assert simulator.state()["aborted"] > 0
        stopped = ended(client, found.batch_id)
        assert (stopped.status, stopped.failed) == (BatchStatus.CANCELLED, 0)
        assert stopped.succeeded + stopped.cancelled == 300
        errors = list(client.batches.errors(found.batch_id))
        assert len(errors) == stopped.cancelled
        assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
        assert client.get(JobId(int(errors[0]["id"].removeprefix("batch_req_")))).state == "cancelled"
        lines_of_all, cursor = client.batches.output_since(found.batch_id)
        assert len(lines_of_all) == 300
        assert client.batches.output_since(found.batch_id, cursor)[0] == []
        kept = {line["custom_id"]: line for line in client.batches.output(found.batch_id)}
        client.batches.retry(found.batch_id)
        done = ended(client, found.batch_id)
    assert (done.status, done.succeeded, done.cancelled) == (BatchStatus.COMPLETED, 300, 0)
    after = {line["custom_id"]: line for line in client.batches.output(found.batch_id)}
    assert len(after) == 300
    assert {name: after[name] for name in kept} == kept, "what had succeeded did not run again"


def test_a_retry_runs_exactly_the_rows_that_failed(
    sandbox: Sandbox, client: Client, write: Write, tmp_path: Path
) -> None:
    script = tmp_path / "answers"
    script.write_text(json.dumps({"when": "第7个", "status": 400}) + "\n")
    with running(sandbox, "--answers", str(script)):
        found = client.batches.create(write(40))
        failed = ended(client, found.batch_id)
    assert (failed.status, failed.succeeded, failed.failed) == (BatchStatus.COMPLETED, 39, 1)
    (error,) = client.batches.errors(found.batch_id)
    assert (error["custom_id"], error["response"]["status_code"], error["error"]) == ("r7", 400, None)
    assert error["response"]["body"]["error"]["code"] == "request_rejected"
    with running(sandbox) as simulator:
        client.batches.retry(found.batch_id)
        done = ended(client, found.batch_id)
        assert simulator.state()["requests"] == 1
    assert (done.succeeded, done.failed) == (40, 0)
    assert client.batches.retry(found.batch_id).status is BatchStatus.COMPLETED, "nothing is left to run"


def test_rows_that_a_window_expired_run_in_a_new_one(sandbox: Sandbox, client: Client, write: Write) -> None:
    with sandbox.process("pipeline.cli", "recover"):
        found = client.batches.create(write(40), window_seconds=3_600)
        assert found.expires_at is not None
        sandbox.query("UPDATE batches SET expires_at = now()")
        sandbox.query("UPDATE chunks SET deadline = now()")
        expired = ended(client, found.batch_id)
    assert (expired.status, expired.expired) == (BatchStatus.EXPIRED, 40)
    assert {line["error"]["code"] for line in client.batches.errors(found.batch_id)} == {"batch_expired"}
    again = client.batches.retry(found.batch_id)
    assert again.expires_at is not None
    assert again.expires_at > expired.created_at
    assert (again.status, again.expired) == (BatchStatus.IN_PROGRESS, 0)
    with running(sandbox):
        assert ended(client, found.batch_id).succeeded == 40


@pytest.mark.parametrize(("limit", "canary"), [(0.05, "failed"), (0.9, "passed")])
def test_a_canary_runs_first_and_pauses_a_batch_that_fails(
    sandbox: Sandbox, client: Client, write: Write, tmp_path: Path, limit: float, canary: str
) -> None:
    script = tmp_path / "answers"
    script.write_text("".join(json.dumps({"when": f"{digit}个", "status": 400}) + "\n" for digit in range(4)))
    with running(sandbox, "--answers", str(script)):
        found = client.batches.create(write(600), canary=0.1, canary_limit=limit)
        assert found.canary == "running"
        wait_for(lambda: client.batches.get(found.batch_id).canary != "running", "the canary to be decided")
        decided = client.batches.get(found.batch_id)
        assert decided.canary == canary
        if canary == "failed":
            assert 30 < decided.settled < 100, "only the canary ran"
            assert (decided.paused_by, decided.status) == ("canary", BatchStatus.IN_PROGRESS)
            assert decided.pause_reason == f"{decided.failed} of the first {decided.settled} rows failed"
            client.batches.resume(found.batch_id)
        done = ended(client, found.batch_id)
    assert (done.succeeded, done.failed) == (360, 240)


def test_nothing_runs_before_its_time(sandbox: Sandbox, client: Client, write: Write) -> None:
    with running(sandbox):
        later = client.batches.create(write(20), not_before="2100-01-01T00:00:00Z")
        now = client.batches.create(write(20, "now"))
        assert ended(client, now.batch_id).succeeded == 20
        assert client.batches.get(later.batch_id).settled == 0
        sandbox.query("UPDATE batches SET not_before = now() WHERE batch_id = %s", later.batch_id)
        assert ended(client, later.batch_id).succeeded == 20


def test_ordered_output_follows_the_file_and_is_the_same_each_time(
    sandbox: Sandbox, client: Client, write: Write, tmp_path: Path
) -> None:
    lines: list[Any] = []
    for number in range(1_500):
        one = openai_line(number, model=("chatglm3-6b", "codegeex4-all-9b")[number % 2])
        lines.append(one if number % 7 else {"custom_id": f"r{number}", "kind": "sentiment", "text": f"好 {number}"})
    with running(sandbox), sandbox.simulator("--model", "codegeex4-all-9b") as code:
        del code
        found = client.batches.create(write([line for line in lines if "kind" in line or "chatglm" in str(line)]))
        ended(client, found.batch_id)
    names = [line["custom_id"] for line in client.batches.output(found.batch_id, ordered=True)]
    assert names == [line["custom_id"] for line in lines if "kind" in line or "chatglm" in str(line)]
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for file in files:
        sandbox.yyc3("batches", "output", str(found.batch_id), "--ordered", "--out", str(file))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_cursor_skips_no_row_that_commits_late_and_shows_none_again(
    sandbox: Sandbox, client: Client, write: Write
) -> None:
    found = client.batches.create(write(3))
    ((first, *_),) = sandbox.query("SELECT first_job_id FROM chunks")
    settle = """
        WITH o AS (INSERT INTO outcomes (job_id, replay, tenant, kind, state, answer)
                   VALUES (%s, 0, 'default', 'completion', 'succeeded', '{"kind":"completion","body":{}}'))
        UPDATE chunks SET succeeded = succeeded + 1 WHERE first_job_id = %s"""
    address = parse_url(sandbox.database_url)
    with psycopg.connect(address.url, **address.arguments()) as late:
        late.execute(
            """INSERT INTO outcomes (job_id, replay, tenant, kind, state, answer)
               VALUES (%s, 0, 'default', 'completion', 'succeeded', '{"kind":"completion","body":{}}')""",
            (first,),
        )
        sandbox.query(settle, first + 1, first)  # begins later, commits earlier
        seen, cursor = client.batches.output_since(found.batch_id)
        names = [line["custom_id"] for line in seen]
        late.execute("UPDATE chunks SET succeeded = succeeded + 1 WHERE first_job_id = %s", (first,))
        late.commit()
    sandbox.query(settle, first + 2, first)
    for _ in range(3):
        seen, cursor = client.batches.output_since(found.batch_id, cursor)
        names += [line["custom_id"] for line in seen]
    assert sorted(names) == ["r0", "r1", "r2"]


async def test_tenants_take_turns_and_weights_divide_what_a_tenant_gets(
    sandbox: Sandbox, client: Client, write: Write, database: Database
) -> None:
    from uuid import uuid4

    for tenant, weight, name in (("a", 1, "a1"), ("a", 3, "a3"), ("b", 1, "b1")):
        client.batches.create(write(256, name), tenant=tenant, weight=weight)
    taken: list[int] = []
    for _ in range(8):
        (claim,) = (
            await claims.claim_best(database, "chatglm3-6b", Lane.BULK, [uuid4()], worker="w", lease=LEASE)
        ).values()
        taken.append(claim.batch_id or 0)
    tenant_b = client.batches.list(tenant="b")[0].batch_id
    heavy, light = (one.batch_id for one in client.batches.list(tenant="a"))
    assert taken.count(tenant_b) == 4
    assert (taken.count(heavy), taken.count(light)) == (3, 1)


@pytest.mark.parametrize("cursor", ["x", "1.2", "-1.2.3", "1.2.3.4"])
def test_a_cursor_that_is_none_of_ours_is_refused(client: Client, cursor: str) -> None:
    with pytest.raises(InvalidJob, match="cursor: is none of ours"):
        client.batches.output_since(BatchId(1), cursor)


def test_a_watch_of_a_cancelled_batch_ends_in_both_forms(sandbox: Sandbox, client: Client, write: Write) -> None:
    found = client.batches.create(write(2_000))
    client.batches.cancel(found.batch_id)
    *_, last = client.watch_batch(found.batch_id)
    assert (last.cancelled, last.settled) == (2_000, 2_000)
    ((chunks,),) = sandbox.query("SELECT count(*) FROM chunks WHERE batch_id = %s", found.batch_id)
    assert chunks > 8, "its output comes in several pages"
    seen, cursor = client.batches.output_since(found.batch_id)
    assert sorted(line["custom_id"] for line in seen) == sorted(f"r{at}" for at in range(2_000))
    job = seen[0]["id"].removeprefix("batch_req_")
    assert client.cancel(JobId(int(job))) is False, "it was cancelled before"
    assert client.batches.output_since(found.batch_id, cursor)[0] == []


def test_tenants_never_share_a_request(sandbox: Sandbox, client: Client) -> None:
    with sandbox.simulator() as simulator, sandbox.worker("interactive"):
        jobs = [
            {"kind": "sentiment", "text": f"好 {at}", "tenant": ("a", "b")[at % 2], "cache": False} for at in range(2)
        ]
        for job_id in [client.submit(job) for job in jobs]:
            assert client.result(job_id, timeout=30).batch_rows == 1
        assert simulator.state()["rows"] == 2


def test_pauses_and_cursors_of_others_are_refused_in_a_sentence(client: Client, write: Write) -> None:
    found = client.batches.create(write(3))
    for reason in ("", "x" * 501, "a\0b"):
        with pytest.raises(InvalidJob, match="reason: must be text of 1 to 500 characters"):
            client.batches.pause(found.batch_id, reason=reason)
    for cursor in ("9" * 19 + ".1.1", "9" * 18 + ".1.1"):
        with pytest.raises(InvalidJob, match="cursor: is "):
            client.batches.output_since(found.batch_id, cursor)
    with pytest.raises(BatchNotFound):
        client.batches.output_since(BatchId(99_999))
    client.batches.cancel(found.batch_id)
    assert client.batches.pause(found.batch_id).paused_at is None, "it has ended"


def test_a_retry_after_a_cancel_leaves_the_canary_first(sandbox: Sandbox, client: Client, write: Write) -> None:
    found = client.batches.create(write(600), canary=0.1)
    client.batches.cancel(found.batch_id)
    seen, cursor = client.batches.output_since(found.batch_id)
    assert len(seen) == 600
    broken = write(["{broken"], "other")  # no rows: the next sweep decides
    other = client.batches.create(broken, canary=0.5)
    with sandbox.process("pipeline.cli", "recover"):
        wait_for(lambda: client.batches.get(other.batch_id).canary == "passed", "a sweep")
    assert client.batches.get(found.batch_id).canary == "running", "a cancelled batch decides nothing"
    assert client.batches.output_since(found.batch_id, cursor)[0] == []
    client.batches.retry(found.batch_id)
    assert sandbox.query(
        "SELECT count(*) > 0 FROM chunks WHERE batch_id = %s AND due_at = 'infinity'", found.batch_id
    ) == [(True,)]
