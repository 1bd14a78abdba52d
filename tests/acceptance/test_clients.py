"""What a program notices of its client: forks, time limits, keys that are known, tenants."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from pipeline import Client
from pipeline.jobs import wait
from schemas.errors import BatchNotFound, InvalidJob, JobNotFound, ResultTimeout
from schemas.ids import BatchId, JobId
from schemas.results import JobState
from tests.support.sandbox import ROOT, Sandbox

_FORK = """
import os, sys
from pipeline import Client
job = {"kind": "intent", "text": "我要退款"}
with Client() as client:
    client.submit(job)
    child = os.fork()
    if child == 0:
        try:
            client.submit(job)
        except RuntimeError as error:
            print("child:", error, flush=True)
        client.__exit__(None, None, None)
        os._exit(0)
    os.waitpid(child, 0)
    print("parent:", client.submit(job) > 0, flush=True)
"""


def test_a_client_that_was_opened_before_a_fork_says_so_in_the_child(sandbox: Sandbox) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORK], capture_output=True, text=True, cwd=ROOT, env=sandbox.environment, timeout=60
    )
    assert "child: this client was opened before a fork" in done.stdout, done.stderr
    assert "parent: True" in done.stdout, done.stderr


def test_a_time_limit_holds_for_a_stream(sandbox: Sandbox) -> None:
    chat: dict[str, Any] = {"kind": "chat", "messages": [{"role": "user", "content": "讲个故事"}]}
    with sandbox.simulator() as engine, sandbox.worker("interactive"):
        engine.inject_faults("hang")
        client = Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url)
        with client, pytest.raises(ResultTimeout):
            list(client.stream(chat, timeout=1))
        started = time.monotonic()
        done = sandbox.yyc3("submit", "chat", "--text", "讲个故事", "--stream", "--timeout", "1", check=1)
        assert time.monotonic() - started < 60, "the option was ignored: this engine never answers"
        assert "is not finished yet" in done.stderr


def test_the_result_of_a_known_key_is_there_at_once(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "_LOOK_SECONDS", 1_000.0)
    monkeypatch.setattr(wait, "_LONGEST_LOOK_SECONDS", 1_000.0)
    job = {"kind": "intent", "text": "我要退款", "idempotency_key": "order-7"}
    with (
        sandbox.simulator(),
        sandbox.worker("interactive"),
        Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client,
    ):
        first = client.submit(job)
        assert client.result(first, timeout=60).state is JobState.SUCCEEDED
        again = client.submit(job)
        assert again == first
        assert client.result(again, timeout=30).state is JobState.SUCCEEDED


def test_a_tenant_never_gets_the_answer_of_another(sandbox: Sandbox) -> None:
    question = {"kind": "intent", "text": "我要退款"}
    with (
        sandbox.simulator(),
        sandbox.worker("bulk"),
        sandbox.process("pipeline.cli", "recover"),
        Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client,
    ):
        for tenant, cached in (("a", False), ("b", False), ("a", True)):
            batch = client.submit_many([question], tenant=tenant)
            list(client.watch_batch(batch.batch_id))
            (outcome,) = client.batch_outcomes(batch.batch_id)
            assert (outcome.cached_from is not None) is cached
            owners = "SELECT j.tenant, c.tenant, o.tenant FROM jobs j JOIN chunks c ON c.first_job_id = j.job_id"
            stored = sandbox.query(f"{owners} JOIN outcomes o USING (job_id) WHERE j.job_id = %s", outcome.job_id)
            assert stored == [(tenant, tenant, tenant)]
        for tenant in ("a b 中文", "x" * 200, ""):
            with pytest.raises(InvalidJob, match="tenant"):
                client.submit_many([question], tenant=tenant)
        with pytest.raises(InvalidJob, match="another one than that of the batch"):
            client.submit_many([question, {**question, "tenant": "c"}], tenant="a")


def test_arguments_that_are_none_are_refused_in_our_words(sandbox: Sandbox) -> None:
    job = {"kind": "intent", "text": "x"}
    with Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:
        calls: list[tuple[Callable[[], object], str]] = [
            (lambda: client.submit_many(job), "jobs: give a list of jobs"),  # type: ignore[arg-type]
            (lambda: client.submit_many(None), "jobs: give a list of jobs"),  # type: ignore[arg-type]
            (lambda: client.submit_many([job], name=5), "name: must be text"),  # type: ignore[arg-type]
            (lambda: client.submit_many([job], idempotency_key=""), "idempotency_key: must be text of 1"),
            (lambda: client.submit_many([job], tenant=5), "tenant: must have"),  # type: ignore[arg-type]
            (lambda: client.get("5a"), "job_id: must be a number"),  # type: ignore[arg-type]
            (lambda: client.get(True), "job_id: must be a number"),  # type: ignore[arg-type]
        ]
        for call, reason in calls:
            with pytest.raises(InvalidJob, match=reason):
                call()
        job_id = client.submit(job)
        assert client.get(str(job_id)).job_id == job_id  # type: ignore[arg-type]
        for timeout in ("5", float("nan"), 10**400, True):
            with pytest.raises(InvalidJob, match="timeout: must be a number of seconds"):
                client.result(job_id, timeout=timeout)  # type: ignore[arg-type]
        for unknown in (2**63, 99_999):
            with pytest.raises(JobNotFound):
                client.get(JobId(unknown))
            with pytest.raises(BatchNotFound):
                client.batch_progress(BatchId(unknown))
        with pytest.raises(BatchNotFound):
            list(client.watch_batch(BatchId(99_999)))
