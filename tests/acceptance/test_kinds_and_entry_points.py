"""Every kind of job through every entry point, on real servers and workers."""

import asyncio
import base64
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery
from PIL import Image

from pipeline.testing import PipelineUnderTest
from schemas.intake import INTAKE_QUEUE, SUBMIT_TASK
from schemas.results import (
    ChatResult,
    CodeResult,
    IntentResult,
    JobState,
    Outcome,
    SentimentLabel,
    SentimentResult,
    VisionResult,
)
from schemas.streams import EndEvent, TextEvent
from schemas.timings import Usage


def picture() -> str:
    raw = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(raw, "PNG")
    return f"data:image/png;base64,{base64.b64encode(raw.getvalue()).decode()}"


JOBS: dict[str, dict[str, Any]] = {
    "intent": {"kind": "intent", "text": "东西我不要了，我要退款。"},
    "sentiment": {"kind": "sentiment", "text": "太差了，等了一个小时没人管，气死我了！"},
    "chat": {"kind": "chat", "messages": [{"role": "user", "content": "你好"}], "sampling": {"max_tokens": 40}},
    "code": {"kind": "code", "instruction": "add two numbers", "language": "python", "context": "x = 1"},
    "vision": {"kind": "vision", "question": "箱子怎么了？", "images": [picture()]},
}
MODELS = {"code": "codegeex4-all-9b", "vision": "cogagent"}


def through_client(yyc3: PipelineUnderTest, job: dict[str, Any]) -> Outcome:
    with yyc3.client() as client:
        return client.result(client.submit(job), timeout=20)


def through_async_client(yyc3: PipelineUnderTest, job: dict[str, Any]) -> Outcome:
    async def go() -> Outcome:
        async with yyc3.async_client() as client:
            return await client.result(await client.submit(job), timeout=20)

    return asyncio.run(go())


def through_batch(yyc3: PipelineUnderTest, job: dict[str, Any]) -> Outcome:
    with yyc3.client() as client:
        batch = client.submit_many([job] * 3)
        *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 3
        return list(client.batch_outcomes(batch.batch_id))[1]


def through_command(yyc3: PipelineUnderTest, job: dict[str, Any]) -> Outcome:
    text = job.get("text") or job.get("instruction") or job.get("question") or job["messages"][0]["content"]
    more = []
    if job["kind"] == "code":
        more = ["--language", job["language"], "--context", job["context"]]
    if job["kind"] == "vision":
        file = yyc3.home / "picture.png"
        file.write_bytes(base64.b64decode(job["images"][0].partition(",")[2]))
        more = ["--image", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "submit", job["kind"], "--text", text, *more, "--wait", "--json"],
        env=yyc3.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return Outcome.model_validate_json(done.stdout)


def through_intake(yyc3: PipelineUnderTest, job: dict[str, Any]) -> Outcome:
    yyc3.start_intake()
    queue, key = f"replies.{uuid4().hex}", uuid4().hex
    app = Celery("crm", broker=yyc3.redis_url, set_as_current=False)
    app.send_task(SUBMIT_TASK, kwargs={**job, "job_key": key, "reply_to": queue}, queue=INTAKE_QUEUE)
    app.close()
    replies: list[dict[str, Any]] = []
    end = time.monotonic() + 20
    with redis.Redis.from_url(yyc3.redis_url) as broker:
        while len(replies) < 2:
            assert time.monotonic() < end, f"two replies, found {replies}"
            popped: Any = broker.brpop([queue], timeout=1)
            if popped:
                replies.append(json.loads(base64.b64decode(json.loads(popped[1])["body"]))[1])
    accepted, outcome = replies
    assert (accepted["event"], outcome["event"], accepted["job_key"]) == ("accepted", "outcome", key)
    return Outcome.model_validate(outcome["outcome"])


EntryPoint = Callable[[PipelineUnderTest, dict[str, Any]], Outcome]
ENTRY_POINTS = [through_client, through_async_client, through_batch, through_command, through_intake]


@pytest.mark.parametrize("kind", JOBS)
@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_every_kind_is_answered_through_every_entry_point(
    yyc3: PipelineUnderTest, entry_point: EntryPoint, kind: str
) -> None:
    outcome = entry_point(yyc3, JOBS[kind])
    assert outcome.state is JobState.SUCCEEDED, outcome.error
    assert outcome.kind == kind
    assert outcome.simulated
    assert outcome.model == MODELS.get(kind, "chatglm3-6b")
    assert outcome.engine_version == "0.32.0"
    assert outcome.template_hash
    if outcome.cached_from is None:  # with another entry point the same job may have been answered before
        assert outcome.usage.completion_tokens
        assert outcome.timings.engine_seconds is not None
    else:
        assert kind in {"intent", "sentiment"}
        assert outcome.usage == Usage(prompt_tokens=0, completion_tokens=0)
    check_result(outcome)
    if kind in {"chat", "code", "vision"} and entry_point is not through_batch:
        assert outcome.timings.engine_seconds is not None
        assert outcome.timings.first_token_seconds is not None
        assert outcome.timings.first_token_seconds <= outcome.timings.engine_seconds


def check_result(outcome: Outcome) -> None:
    """Check that a result is the one that the simulator finds for the job of its kind."""
    match outcome.result:
        case IntentResult() as intent:
            assert intent.label == "refund"
            assert intent.probabilities is not None
            assert intent.confidence == intent.probabilities["refund"]
            assert sum(intent.probabilities.values()) == pytest.approx(1)
        case SentimentResult() as sentiment:
            assert sentiment.label is SentimentLabel.NEGATIVE
            assert sentiment.score < -0.3
        case ChatResult(text=text) | VisionResult(text=text):
            assert text
        case CodeResult() as code:
            assert code.language == "python"
            assert "```" not in code.code
            compile(code.code, "answer", "exec")
        case None:
            pytest.fail("no result")


@pytest.mark.parametrize("kind", ["chat", "code", "vision"])
def test_generated_text_is_streamed_from_python_and_the_command_line(yyc3: PipelineUnderTest, kind: str) -> None:
    with yyc3.client() as client:
        *pieces, end = client.stream(JOBS[kind])
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextEvent))
    assert {piece.event for piece in pieces} == {"text"}
    assert isinstance(end, EndEvent)
    assert end.outcome.state is JobState.SUCCEEDED
    more = {"code": ["--language", "python"], "vision": ["--image", JOBS["vision"]["images"][0]]}.get(kind, [])
    command = [sys.executable, "-m", "pipeline.cli", "submit", kind, "--text", "hello", *more, "--stream"]
    done = subprocess.run(command, env=yyc3.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "simulated answer" in done.stdout
    assert "first token" in done.stderr
    lines = subprocess.run([*command, "--json"], env=yyc3.environment, capture_output=True, text=True, timeout=60)
    events = [json.loads(line) for line in lines.stdout.splitlines()]
    assert {event["event"] for event in events[:-1]} == {"text"}
    assert events[-1]["outcome"]["state"] == "succeeded"


@pytest.fixture
def with_invalid_answers(yyc3: PipelineUnderTest) -> Iterator[PipelineUnderTest]:
    yyc3.stub_answer("prose", "I would rather not.", times=1)
    yyc3.stub_answer("cut", "```python\nprint('half", cut_off=True, times=1)
    yield yyc3


@pytest.mark.parametrize("word", ["prose", "cut"])
def test_an_answer_without_code_or_cut_off_is_a_failed_attempt(
    with_invalid_answers: PipelineUnderTest, word: str
) -> None:
    with with_invalid_answers.client() as client:
        job_id = client.submit({"kind": "code", "instruction": f"{word}: add numbers", "language": "python"})
        outcome = client.result(job_id, timeout=20)
    assert (outcome.state, outcome.attempts) == (JobState.SUCCEEDED, 1)


def test_a_schema_makes_the_answer_json_that_is_validated(yyc3: PipelineUnderTest) -> None:
    schema = {"type": "object", "properties": {"broken": {"type": "boolean"}}, "required": ["broken"]}
    yyc3.stub_answer("outside", '{"broken": "perhaps"}', times=1)
    with yyc3.client() as client:
        for question, attempts in (("plain", 0), ("outside", 1)):
            job = {**JOBS["vision"], "question": question, "answer_schema": schema}
            outcome = client.result(client.submit(job), timeout=20)
            assert isinstance(outcome.result, VisionResult), outcome
            assert outcome.attempts == attempts
            assert outcome.result.answer is not None
            assert isinstance(outcome.result.answer["broken"], bool)
            assert json.loads(outcome.result.text) == outcome.result.answer


def test_the_command_line_refuses_images_it_cannot_send(yyc3: PipelineUnderTest, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 11_000_000)
    (tmp_path / "text.png").write_text("hello")
    for given, reason in (
        ("large.png", "larger than 10 MiB"),
        ("text.png", "is not an image of a known type"),
        ("missing.png", "cannot be read"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "submit", "vision", "--text", "?", "--image", str(tmp_path / given)],
            env=yyc3.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert reason in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
