"""The pipeline for test suites of callers: every error code can be provoked, and tests are isolated from each other."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline import Client
from pipeline.broker import TASK_NAME, Notifier, make_app
from pipeline.calls import read_calls
from pipeline.testing import PipelineUnderTest
from schemas.doorbells import Lane
from schemas.errors import (
    BrokerUnavailable,
    DuplicateJob,
    ErrorCode,
    InvalidCall,
    InvalidJob,
    InvalidSetting,
    JobNotFound,
    PipelineError,
    ResultTimeout,
    StoreUnavailable,
    UnknownModel,
)
from schemas.ids import JobId
from schemas.results import ChatResult, JobState, Outcome
from tests.support.sandbox import ROOT, wait_for

FEELING = {"kind": "sentiment", "text": "谢谢"}


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"kind": "chat", "messages": [{"role": "user", "content": text}], **more}


def settled(yyc3: PipelineUnderTest, job: dict[str, Any]) -> Outcome:
    with yyc3.client() as client:
        return client.result(client.submit(job), timeout=30)


def waiting(yyc3: PipelineUnderTest, job: dict[str, Any], code: ErrorCode) -> Outcome:
    """Return the job while it waits for another attempt because of this code."""
    with yyc3.client() as client:
        job_id = client.submit(job)

        def failed_attempt() -> Outcome | None:
            seen = client.get(job_id)
            return seen if seen.error is not None and seen.error.code is code else None

        seen = wait_for(failed_attempt, f"an attempt that ends with {code}", 20)
        assert seen is not None
        assert not seen.settled
        client.cancel(job_id)
        return seen


def raised(call: Callable[[], Any], kind: type[PipelineError]) -> ErrorCode:
    with pytest.raises(kind) as found:
        call()
    return found.value.code


FAULTS = {
    ErrorCode.ENGINE_UNAVAILABLE: "401",
    ErrorCode.ENGINE_OVERLOADED: "503",
    ErrorCode.ENGINE_TIMEOUT: "hang",
    ErrorCode.ENGINE_FAILED: "500",
    ErrorCode.INVALID_OUTPUT: "empty",
}


def provoke_in_answers(yyc3: PipelineUnderTest, code: ErrorCode) -> Outcome:
    """Provoke a code that an outcome has."""
    if code in FAULTS:
        # An engine that refuses one job and answers others is not away.
        yyc3.inject_fault("" if code is ErrorCode.ENGINE_UNAVAILABLE else "provoked", FAULTS[code])
        return waiting(yyc3, chat("provoked"), code)
    match code:
        case ErrorCode.REQUEST_REJECTED:
            yyc3.inject_fault("provoked", "400")
            return settled(yyc3, chat("provoked"))
        case ErrorCode.PROMPT_TOO_LONG:
            return settled(yyc3, chat("太长了。" * 20_000))
        case ErrorCode.DEADLINE_PASSED:
            return settled(yyc3, {**FEELING, "deadline": datetime.now(UTC) - timedelta(seconds=1)})
        case ErrorCode.CANCELLED:
            yyc3.inject_fault("provoked", "hang")
            with yyc3.client() as client:
                job_id = client.submit(chat("provoked"))
                client.cancel(job_id)
                return client.result(job_id, timeout=10)
        case _:  # to occur by themselves they need long, or a bug of ours
            with yyc3.client() as client:
                return client.get(yyc3.dead_letter(FEELING, code))


def used_key(client: Client) -> None:
    key = f"key {time.time_ns()}"
    client.submit({**FEELING, "idempotency_key": key})
    client.submit({**FEELING, "text": "不", "idempotency_key": key})


def impatient(yyc3: PipelineUnderTest, client: Client) -> None:
    yyc3.inject_fault("provoked", "hang", times=1)
    job_id = client.submit(chat("provoked"))
    try:
        client.result(job_id, timeout=0.1)
    finally:
        client.cancel(job_id)


def without_database(yyc3: PipelineUnderTest) -> None:
    with Client(database_url="postgresql://nobody@127.0.0.1:9/none", redis_url=yyc3.redis_url) as lost:
        lost.submit(FEELING)


# Codes that a caller gets as an exception, and calls that raise it.
IN_CALLS: dict[ErrorCode, tuple[type[PipelineError], Callable[[PipelineUnderTest, Client, Path], Any]]] = {
    ErrorCode.UNKNOWN_MODEL: (UnknownModel, lambda _, client, __: client.submit({**FEELING, "model": "gpt"})),
    ErrorCode.INVALID_SETTING: (InvalidSetting, lambda *_: Client(redis_url="http://nowhere")),
    ErrorCode.INVALID_JOB: (InvalidJob, lambda _, client, __: client.submit({"kind": "sentiment"})),
    ErrorCode.DUPLICATE_JOB: (DuplicateJob, lambda _, client, __: used_key(client)),
    ErrorCode.JOB_NOT_FOUND: (JobNotFound, lambda _, client, __: client.get(JobId(5))),
    ErrorCode.RESULT_TIMEOUT: (ResultTimeout, lambda yyc3, client, _: impatient(yyc3, client)),
    ErrorCode.INVALID_CALL: (InvalidCall, lambda _, __, folder: list(read_calls([folder / "missing.jsonl"]))),
    ErrorCode.STORE_UNAVAILABLE: (StoreUnavailable, lambda yyc3, *_: without_database(yyc3)),
    ErrorCode.BROKER_UNAVAILABLE: (
        BrokerUnavailable,
        lambda *_: asyncio.run(Notifier("redis://127.0.0.1:9").ping()),
    ),
}


def undecodable(yyc3: PipelineUnderTest) -> ErrorCode:
    """Send a message that is not a doorbell: a worker logs that, and continues."""
    app, log = make_app(yyc3.redis_url), yyc3.home / "worker-interactive.log"
    app.send_task(TASK_NAME, args=["what?"], queue="chatglm3-6b")
    app.close()
    wait_for(lambda: ErrorCode.UNDECODABLE_MESSAGE in log.read_text(), "the worker to log it")
    return ErrorCode.UNDECODABLE_MESSAGE


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_code_can_be_provoked(yyc3: PipelineUnderTest, code: ErrorCode, tmp_path: Path) -> None:
    if code in IN_CALLS:
        kind, call = IN_CALLS[code]
        with yyc3.client() as client:
            assert raised(lambda: call(yyc3, client, tmp_path), kind) == code
    elif code is ErrorCode.UNDECODABLE_MESSAGE:
        assert undecodable(yyc3) == code
    else:
        outcome = provoke_in_answers(yyc3, code)
        assert outcome.error is not None
        assert outcome.error.code == code


def test_a_fault_of_one_test_is_gone_in_the_next(yyc3: PipelineUnderTest) -> None:
    outcome = settled(yyc3, chat("provoked"))
    assert isinstance(outcome.result, ChatResult)
    assert "模拟" in outcome.result.text or "simulated" in outcome.result.text


def test_the_newest_stub_comes_first_and_as_often_as_requested(yyc3: PipelineUnderTest) -> None:
    yyc3.stub_answer("箱子", "always")
    yyc3.stub_answer("箱子压扁了", "once", times=1)
    texts = [getattr(settled(yyc3, chat("我的箱子压扁了")).result, "text", None) for _ in range(2)]
    assert texts == ["once", "always"]
    with pytest.raises(InvalidSetting, match="'gpt' is not simulated here"):
        yyc3.stub_answer("x", "y", model="gpt")
    with pytest.raises(InvalidSetting, match="no fault 'rain'"):
        yyc3.inject_fault("x", "rain")


def test_a_killed_worker_loses_no_job(yyc3: PipelineUnderTest) -> None:
    yyc3.inject_fault("unanswered", "hang")
    with yyc3.client() as client:
        job_id = client.submit(chat("unanswered"))
        wait_for(lambda: client.get(job_id).state is JobState.RUNNING, "a worker to claim it")
        yyc3.kill_worker(Lane.INTERACTIVE)
        assert not client.get(job_id).settled
        yyc3.reset()
        assert client.result(job_id, timeout=30).state is JobState.SUCCEEDED


def test_the_example_of_the_module_runs_in_a_suite_of_its_own(tmp_path: Path) -> None:
    example = (ROOT / "pipeline" / "testing.py").read_text(encoding="utf-8").split('"""')[1]
    plugin, _, test = "\n".join(line.removeprefix("    ") for line in example.splitlines()).partition(
        "# in conftest.py"
    )
    (tmp_path / "conftest.py").write_text(plugin[plugin.index("pytest_plugins") :])
    (tmp_path / "test_mine.py").write_text(test[: test.index("It is started once")], encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(tmp_path), "--rootdir", str(tmp_path), "-p", "no:cacheprovider"],
        env={**environment, "DATABASE_URL": "postgresql://user@elsewhere/production"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
