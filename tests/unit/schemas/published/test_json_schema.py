"""The published schema accepts and refuses the same as the code."""

import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from schemas.doorbells import Doorbell, Lane
from schemas.errors import ErrorCode, InvalidJob
from schemas.ids import JobId
from schemas.intake import AcceptedReply, OutcomeReply, RefusalError, RefusedReply, parse_intake, reply_queue
from schemas.jobs import parse_job
from schemas.published import files
from schemas.results import (
    ChatResult,
    CodeResult,
    IntentResult,
    JobError,
    JobState,
    Outcome,
    SentimentLabel,
    SentimentResult,
    VisionResult,
)
from schemas.streams import EndEvent, RestartEvent, TextEvent
from schemas.timings import Usage
from tests.support.sandbox import ROOT
from tests.unit.schemas.published.documents import DEFINITIONS, DOCUMENT, RENEW, accepts

JOB = JobId(1024)
PNG = "data:image/png;base64,iVBORw0KGgo="


def test_the_committed_files_are_what_the_code_says() -> None:
    for name, written in files().items():
        assert (ROOT / "docs" / "schemas" / name).read_text(encoding="utf-8") == written, f"{name}: {RENEW}"


def test_the_document_is_a_schema_and_every_reference_resolves() -> None:
    Draft202012Validator.check_schema(DOCUMENT)
    found = re.findall(r'"\$ref": "(.*?)"', json.dumps(DOCUMENT))
    assert len(found) > 30
    assert {reference.removeprefix("#/$defs/") for reference in found} <= set(DEFINITIONS)
    assert not [name for name in DEFINITIONS if name.endswith(("-Input", "-Output"))]
    assert "discriminator" not in json.dumps(DOCUMENT)


TEXT = {"kind": "sentiment", "text": "好"}
CHAT = {"kind": "chat", "messages": [{"role": "user", "content": "你好"}]}
TURNS = [{"speaker": "customer", "text": "好"}]


@pytest.mark.parametrize(
    "job",
    [
        TEXT,
        TEXT | {"kind": "intent", "language": None, "labels": [{"name": "a"}]},
        TEXT | {"turns": None, "context": TURNS, "tags": {"call": "7"}, "tenant": "shop", "priority": -100},
        {"kind": "sentiment", "turns": TURNS, "text": None, "deadline": "2031-05-01T12:00:00+08:00"},
        CHAT | {"stream": True, "sampling": {"temperature": 0, "stop": ["。"]}, "model": None},
        {"kind": "code", "instruction": "x", "language": "c++"},
        {"kind": "vision", "question": "x", "images": [PNG], "answer_schema": {"type": "object"}},
    ],
)
def test_the_schema_and_the_code_accept_the_same_jobs(job: dict[str, Any]) -> None:
    assert accepts("Job", job)
    assert parse_job(job)
    arguments = job | {"job_key": "k"}
    assert accepts("SubmitArguments", arguments)
    assert parse_intake(arguments, frozenset())


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"text": "好"},
        {"messages": CHAT["messages"]},
        TEXT | {"kind": "forecast"},
        {"kind": "sentiment"},
        TEXT | {"turns": TURNS},
        TEXT | {"text": ""},
        TEXT | {"text": "好" * 20_001},
        TEXT | {"mood": "good"},
        TEXT | {"tenant": "a shop"},
        TEXT | {"priority": 101},
        TEXT | {"stream": True},
        TEXT | {"tags": {str(number): "x" for number in range(17)}},
        TEXT | {"tags": {"": "x"}},
        CHAT | {"messages": []},
        CHAT | {"messages": [{"role": "robot", "content": "x"}]},
        CHAT | {"sampling": {"temperature": 3}},
        CHAT | {"sampling": {"top_p": 0}},
        {"kind": "code", "instruction": "x"},
        {"kind": "code", "instruction": "x", "language": "a\nb"},
        {"kind": "vision", "question": "x", "images": []},
        {"kind": "vision", "question": "x", "images": [PNG] * 9},
    ],
)
def test_the_schema_and_the_code_refuse_the_same_jobs(job: dict[str, Any]) -> None:
    assert not accepts("Job", job)
    assert not accepts("SubmitArguments", job | {"job_key": "k"})
    with pytest.raises(InvalidJob):
        parse_job(job)


@pytest.mark.parametrize(
    "more", [{}, {"job_key": ""}, {"job_key": "k" * 201}, {"job_key": 7}, {"job_key": "k", "idempotency_key": "k"}]
)
def test_arguments_of_the_intake_need_a_key_of_their_own(more: dict[str, Any]) -> None:
    assert not accepts("SubmitArguments", TEXT | more)
    with pytest.raises(InvalidJob):
        parse_intake(TEXT | more, frozenset())


def test_the_schema_and_the_code_accept_the_same_reply_queues() -> None:
    for queue in ("crm.replies", "a:b-c_d", "x" * 200, None, "", "a b", "x" * 201, "yyc3.intake", "celery", "_kombu.x"):
        try:
            reply_queue({"reply_to": queue}, frozenset())
            accepted = True
        except InvalidJob:
            accepted = False
        assert accepts("SubmitArguments", TEXT | {"job_key": "k", "reply_to": queue}) is accepted, queue


OUTCOMES = [
    Outcome(job_id=JOB, kind="chat", state=JobState.QUEUED),
    Outcome(
        job_id=JOB,
        kind="chat",
        state=JobState.QUEUED,
        error=JobError(code=ErrorCode.ENGINE_UNAVAILABLE, message="its last attempt failed"),
    ),
    Outcome(
        job_id=JOB,
        kind="chat",
        state=JobState.EXPIRED,
        error=JobError(code=ErrorCode.DEADLINE_PASSED, message="late"),
    ),
    *[
        Outcome(job_id=JOB, kind=result.kind, state=JobState.SUCCEEDED, result=result, usage=Usage(prompt_tokens=3))
        for result in (
            IntentResult(label="refund", confidence=0.9, probabilities={"refund": 0.9, "other": 0.1}),
            SentimentResult(label=SentimentLabel.NEGATIVE, score=-1),
            ChatResult(text="好", finish_reason="stop"),
            CodeResult(code="pass", language="python"),
            VisionResult(text="[1]", answer=[1], finish_reason="stop"),
        )
    ],
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: f"{outcome.kind} {outcome.state}")
def test_an_outcome_is_valid_and_complete_as_it_is_sent(outcome: Outcome) -> None:
    sent = json.loads(outcome.model_dump_json())
    assert accepts("Outcome", sent)
    assert accepts("Outcome", sent | {"something_new": 1})
    for field in sent:
        assert not accepts("Outcome", {name: value for name, value in sent.items() if name != field}), field
    assert not accepts("Outcome", sent | {"state": "lost"})
    assert not accepts("Outcome", sent | {"error": {"code": "bad_luck", "message": ""}})
    assert accepts("StreamEvent", json.loads(EndEvent(job_id=JOB, outcome=outcome).model_dump_json()))
    reply = OutcomeReply(job_key="k", job_id=JOB, outcome=outcome).model_dump(mode="json")
    assert accepts("IntakeReply", reply)
    assert not accepts("IntakeReply", reply | {"event": "accepted", "job_id": None})


def test_replies_events_and_doorbells_are_valid_as_they_are_sent() -> None:
    assert accepts("IntakeReply", AcceptedReply(job_key="k", job_id=JOB).model_dump(mode="json"))
    refused = RefusedReply(job_key=None, error=RefusalError(code=ErrorCode.INVALID_JOB, message="x"))
    assert accepts("IntakeReply", refused.model_dump(mode="json"))
    assert accepts("StreamEvent", TextEvent(job_id=JOB, text="a").model_dump(mode="json"))
    assert accepts("StreamEvent", RestartEvent(job_id=JOB, attempt=2).model_dump(mode="json"))
    for chunk in (None, JOB):
        doorbell = Doorbell(model="cogagent", lane=Lane.BULK, chunk=chunk)
        assert accepts("Doorbell", doorbell.model_dump(mode="json", exclude_none=True))
