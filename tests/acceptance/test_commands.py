"""Commands as an operator types them: what they print when it works, and when it does not."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from pipeline import Client
from pipeline.models import DEFAULT_FILE
from tests.support.exclusive import reserve_port
from tests.support.sandbox import ROOT, SHARED, Sandbox, wait_for
from tests.support.servers import Valkey

CALL = {"call_id": "c1", "turns": [{"speaker": "customer", "text": "我要退款"}, {"speaker": "agent", "text": "好的"}]}
CROSSWOZ = SHARED / "data" / "crosswoz_val_calls.jsonl"


@pytest.fixture(scope="module")
def running(module_sandbox: Sandbox) -> Iterator[Sandbox]:
    """A simulator and a bulk worker, which the tests of this module share."""
    with module_sandbox.simulator(), module_sandbox.worker("bulk"):
        yield module_sandbox


def test_calls_come_out_in_order_and_bad_lines_are_named(running: Sandbox, tmp_path: Path) -> None:
    source, target = tmp_path / "calls.jsonl", tmp_path / "reports.jsonl"
    good = [CALL | {"call_id": f"call {i}"} for i in range(40)]
    lines = [json.dumps(call, ensure_ascii=False) for call in good]
    lines.insert(3, "{broken")
    source.write_text("\n".join(lines), encoding="utf-8")
    done = running.yyc3("calls", "analyze", str(source), "--out", str(target), "--json", check=1)
    counts = json.loads(done.stdout)
    assert (counts["calls"], counts["jobs"], counts["succeeded"], counts["skipped_lines"]) == (40, 120, 120, 1)
    assert f"{source}, line 4: " in done.stderr
    reports = [json.loads(line) for line in target.read_text().splitlines()]
    assert [report["call_id"] for report in reports] == [call["call_id"] for call in good]
    assert all(report["intents"][0]["label"] == "refund" for report in reports)
    assert all([turn["index"] for turn in report["turns"]] == [0] for report in reports)
    assert not target.with_name("reports.jsonl.part").exists()


def test_a_call_whose_jobs_fail_has_the_reasons_and_others_continue(sandbox: Sandbox, tmp_path: Path) -> None:
    script, source, target = (tmp_path / name for name in ("script", "calls.jsonl", "reports.jsonl"))
    script.write_text(json.dumps({"when": "坏话", "status": 400}) + "\n")
    bad = {
        "call_id": "bad",
        "turns": [{"speaker": "customer", "text": "你好"}, {"speaker": "customer", "text": "坏话"}],
    }
    source.write_text("\n".join(json.dumps(call, ensure_ascii=False) for call in (CALL, bad)))
    with sandbox.simulator("--answers", str(script)), sandbox.worker("bulk"):
        done = sandbox.yyc3("calls", "analyze", str(source), "--out", str(target), "--json", check=1)
    assert json.loads(done.stdout)["failed"] == 3
    first, second = (json.loads(line) for line in target.read_text().splitlines())
    assert first["errors"] == []
    assert [turn["index"] for turn in second["turns"]] == [0]
    assert {error["code"] for error in second["errors"]} == {"request_rejected"}
    assert {error["turn_index"] for error in second["errors"]} == {None, 1}


@pytest.mark.skipif(not CROSSWOZ.exists() and "CI" not in os.environ, reason="the shared dialogues are missing")
def test_real_dialogues_keep_every_customer_turn(running: Sandbox, tmp_path: Path) -> None:
    source, target = tmp_path / "calls.jsonl", tmp_path / "reports.jsonl"
    calls = [json.loads(line) for line in CROSSWOZ.read_text(encoding="utf-8").splitlines()[:60]]
    source.write_text("\n".join(json.dumps(call, ensure_ascii=False) for call in calls), encoding="utf-8")
    running.yyc3("calls", "analyze", str(source), "--out", str(target))
    for call, line in zip(calls, target.read_text().splitlines(), strict=True):
        report = json.loads(line)
        assert report["call_id"] == call["call_id"]
        customer = [index for index, turn in enumerate(call["turns"]) if turn["speaker"] == "customer"]
        assert [turn["index"] for turn in report["turns"]] == customer
        assert report["errors"] == []


def test_health_shows_what_is_wrong_and_what_to_do(sandbox: Sandbox, tmp_path: Path) -> None:
    models, port = tmp_path / "models.toml", reserve_port()
    models.write_text(re.sub(r"(?m)^port = 9898$", f"port = {port}", DEFAULT_FILE.read_text("utf-8")), "utf-8")
    sandbox.environment["YYC3_MODELS_FILE"] = str(models)
    with sandbox.simulator(), sandbox.worker("interactive"):
        # A loaded worker may answer after the inspection has ended: then the command is run again.
        served = "ok   workers of chatglm3-6b: interactive."
        printed = wait_for(lambda: text if served in (text := sandbox.yyc3("health", check=3).stdout) else "", served)
    assert "ok   postgres: answers" in printed
    assert "ok   redis: answers" in printed
    assert "ok   chatglm3-6b at http://127.0.0.1" in printed
    assert "simulator, as vLLM" in printed
    assert f"FAIL cogagent at http://127.0.0.1:{port}: http://127.0.0.1:{port} does not answer" in printed
    assert "ok   workers of chatglm3-6b: interactive." in printed
    assert "→ run: yyc3 worker --lane bulk --model chatglm3-6b" in printed
    findings = [json.loads(line) for line in sandbox.yyc3("health", "--json", check=3).stdout.splitlines()]
    assert {finding["part"] for finding in findings if finding["ok"]} == {"postgres", "redis", "broker", "work"}


@pytest.mark.parametrize(
    ("version", "abilities"),
    [
        ("0.32.0", "8192 tokens of context, micro-batches, structured outputs, labels by letter, metrics"),
        ("0.9.2", "8192 tokens of context, no micro-batches, guided, labels by letter, metrics"),
    ],
)
def test_health_shows_what_an_engine_can_do(sandbox: Sandbox, version: str, abilities: str) -> None:
    with sandbox.simulator("--vllm-version", version):
        assert f"simulator, as vLLM {version}, {abilities}" in sandbox.yyc3("health", check=3).stdout


def test_health_tells_that_redis_is_a_replica(sandbox: Sandbox, tmp_path: Path) -> None:
    with Valkey(tmp_path / "valkey") as server, redis.Redis.from_url(server.url) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "9")
        done = sandbox.yyc3("health", check=3, REDIS_URL=server.url)
        assert "FAIL redis: Redis is a replica and takes no messages" in done.stdout
        assert "ok   postgres" in done.stdout
        assert "Traceback" not in done.stdout + done.stderr


def test_too_few_open_files_are_said_at_the_start(sandbox: Sandbox) -> None:
    command = f"ulimit -n 64; exec {sys.executable} -m pipeline.cli up --simulate"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, env=sandbox.environment, timeout=60
    )
    assert done.returncode == 2
    assert "only 64 files may be open here" in done.stderr
    assert "ulimit -n" in done.stderr


def test_health_without_servers_names_them_in_one_sentence_each(sandbox: Sandbox) -> None:
    away = {"DATABASE_URL": "postgresql://x:y@127.0.0.1:9/z", "REDIS_URL": "redis://127.0.0.1:9/0"}
    done = sandbox.yyc3("health", check=3, **away)
    assert "FAIL postgres: Postgres cannot be reached" in done.stdout
    assert "FAIL redis: Redis cannot be reached" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("submit", "intent", "--text", ""), 2, "text: is empty"),
        (("submit", "intent", "--text", "x", "--model", "gpt-9"), 2, "'gpt-9' is not in models.toml"),
        (("submit", "chat", "--text", "x", "--temperature", "9"), 2, "sampling.temperature"),
        (("submit", "intent", "--text", "@/absent"), 2, "/absent cannot be read"),
        (("jobs", "show", "77"), 1, "there is no job 77"),
        (("jobs", "list", "--batch", "77"), 1, "there is no batch 77"),
        (("jobs", "list", "--batch", "0"), 1, "there is no batch 0"),
        (("jobs", "show", str(2**70)), 1, "there is no job"),
        (("dead-letters", "show", str(2**70)), 1, "there is no job"),
        (("jobs", "list", "--kind", "foo"), 2, "there is no kind foo; known are intent"),
        (("jobs", "list", "--tenant", ""), 2, "--tenant: is empty"),
        (("jobs", "list", "--worker", "\udcff"), 1, "has half a character"),
        (("jobs", "find", "--tag", "a=\udcff"), 2, "--tag: has the form NAME=VALUE"),
        (("dead-letters", "list", "--model", "\udcff"), 1, "has half a character"),
        (("dead-letters", "show", "77"), 1, "there is no job 77"),
        (("dead-letters", "replay", "--all", "--per-second", "inf"), 2, "--per-second"),
        (("submit", "intent", "--text", "x", "--deadline", "2020-01-01"), 2, "--deadline: 2020-01-01 is in the past"),
        (("recover", "--json"), 2, "--json goes with --once"),
        (("flower", "--port", "99999"), 2, "--port"),
        (("calls", "analyze", "/absent.jsonl", "--out", "/dev/null"), 2, "/absent.jsonl cannot be read"),
        (("worker", "--lane", "bulk", "--model", "gpt-9"), 2, "'gpt-9' is not in models.toml"),
        (("simulator", "--model", "m", "--fail", "sometimes"), 2, "There is no fault 'sometimes'"),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(
    sandbox: Sandbox, arguments: tuple[str, ...], code: int, complaint: str
) -> None:
    done = sandbox.yyc3(*arguments, check=code)
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_without_servers_names_what_to_start(sandbox: Sandbox) -> None:
    done = sandbox.yyc3("queues", check=2, DATABASE_URL="", REDIS_URL="")
    assert "no yyc3 up is running" in done.stderr


def test_a_url_of_another_scheme_is_refused_and_not_printed(sandbox: Sandbox) -> None:
    done = sandbox.yyc3("queues", check=2, DATABASE_URL="mysql://u:geheim@h/d")
    assert "must begin with postgresql://" in done.stderr
    assert "geheim" not in done.stderr


def test_queues_and_jobs_show_queued_jobs_and_why_they_wait(sandbox: Sandbox) -> None:
    sandbox.environment |= {"AI_BASE_URL": "http://127.0.0.1:9", "AI_MODEL": "chatglm3-6b"}
    with sandbox.worker("interactive") as worker:
        sandbox.yyc3("submit", "intent", "--text", "我要退款")
        wait_for(lambda: sandbox.query("SELECT 1 FROM chunks WHERE last_code IS NOT NULL"), "the first attempt")
        assert worker.terminate() == 0  # it would claim the chunk again
    lines = [json.loads(line) for line in sandbox.yyc3("queues", "--json").stdout.splitlines()]
    (found,) = [line for line in lines if line.get("queue") == "chatglm3-6b"]
    assert (found["queued_jobs"], found["last_code"]) == (1, "engine_unavailable")
    (job,) = [json.loads(line) for line in sandbox.yyc3("jobs", "list", "--json").stdout.splitlines()]
    assert job["state"] == "queued"
    assert job["error"]["code"] == "engine_unavailable"


def test_recover_once_prints_what_it_did(sandbox: Sandbox) -> None:
    sandbox.yyc3("submit", "intent", "--text", "我要退款", REDIS_URL="redis://127.0.0.1:9/0")
    done = json.loads(sandbox.yyc3("recover", "--once", "--json").stdout)
    assert done == {"requeued_chunks": 0, "poison_jobs": 0, "expired_jobs": 0, "doorbells": 1}
    assert json.loads(sandbox.yyc3("recover", "--once", "--json").stdout)["doorbells"] == 0


def test_a_waiting_caller_sees_why_the_jobs_wait(sandbox: Sandbox, tmp_path: Path) -> None:
    source = tmp_path / "calls.jsonl"
    source.write_text(json.dumps(CALL, ensure_ascii=False))
    done = sandbox.yyc3("submit", "intent", "--text", "我要退款", "--wait", "--timeout", "4", check=1)
    assert "waits: no worker has claimed it yet; see: yyc3 health" in done.stderr
    assert "is not finished yet; it continues, request its result again later" in done.stderr
    sandbox.environment |= {"AI_BASE_URL": "http://127.0.0.1:9", "AI_MODEL": "chatglm3-6b"}
    with (
        sandbox.worker("bulk"),
        sandbox.process("pipeline.cli", "calls", "analyze", str(source), "--out", "-") as analysis,
    ):
        reason = "some jobs wait for another attempt: engine_unavailable; see: yyc3 health"
        analysis.wait_until_logged(reason, "the reason")


def test_a_command_that_is_stopped_says_what_goes_on(sandbox: Sandbox) -> None:
    with sandbox.process("pipeline.cli", "submit", "intent", "--text", "我要退款", "--wait") as waiting:
        wait_for(lambda: sandbox.query("SELECT 1 FROM jobs"), "the job")
        ((job_id,),) = sandbox.query("SELECT job_id FROM jobs")
        waiting.wait_until_logged("waits: no worker has claimed it yet", "why it waits")
        waiting.process.send_signal(signal.SIGTERM)  # as Ctrl-C, which a process in the background may ignore
        assert waiting.process.wait(timeout=30) == 130
        assert f"stopped; job {job_id} continues; ask again: yyc3 jobs show {job_id}" in waiting.text
        assert "Traceback" not in waiting.text


def test_jobs_are_found_again_by_what_a_caller_knows(sandbox: Sandbox) -> None:
    with Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:
        tagged = client.submit(
            {"kind": "intent", "text": "我要退款", "idempotency_key": "call-7", "tags": {"call_id": "c 7"}}
        )
        batch = client.submit_many(
            ({"kind": "sentiment", "text": f"谢谢 {i}"} for i in range(3)), tenant="shop", idempotency_key="monday"
        )

    def ids(*arguments: str) -> list[int]:
        lines = sandbox.yyc3("jobs", *arguments, "--json").stdout.splitlines()
        return sorted(json.loads(line)["job_id"] for line in lines)

    assert ids("find", "--key", "call-7") == ids("find", "--tag", "call_id=c 7") == [tagged]
    assert ids("find", "--key", "monday") == ids("list", "--tenant", "shop", "--since", "1h") == [*batch.job_ids]
    assert ids("list", "--batch", str(batch.batch_id), "--limit", "2") == [*batch.job_ids][1:]
    assert ids("list", "--until", "1h") == ids("list", "--crashed") == ids("list", "--worker", "bulk") == []
    shown = json.loads(sandbox.yyc3("jobs", "show", str(tagged), "--json").stdout)
    assert (shown["tags"], shown["idempotency_key"], shown["tenant"]) == ({"call_id": "c 7"}, "call-7", "default")
    assert "no jobs match" in sandbox.yyc3("jobs", "find", "--key", "other").stdout
    assert "give --key or --tag" in sandbox.yyc3("jobs", "find", check=2).stderr


def test_a_worker_that_waits_for_its_endpoint_is_not_asked_for_again(sandbox: Sandbox) -> None:
    """One cause, one advice: the endpoint is away, its worker lives and does not consume meanwhile."""
    sandbox.environment |= {"AI_BASE_URL": "http://127.0.0.1:9", "AI_MODEL": "chatglm3-6b"}

    def parts() -> dict[str, dict[str, Any]]:
        lines = map(json.loads, sandbox.yyc3("health", "--json", check=3).stdout.splitlines())
        return {line["part"]: line for line in lines}

    with sandbox.worker("bulk"):
        wait_for(lambda: parts()["workers of chatglm3-6b.bulk"]["ok"], "its heartbeat, or its queue")
        found = parts()
        assert found["workers of chatglm3-6b.bulk"]["advice"] == ""
        assert not found["chatglm3-6b at http://127.0.0.1:9"]["ok"]
        assert "yyc3 worker --lane interactive" in found["workers of chatglm3-6b"]["advice"], "none of this lane lives"
