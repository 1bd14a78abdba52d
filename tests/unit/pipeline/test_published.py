"""What is published for other languages: it is what the code says, and the code takes what it allows."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pipeline.images.decoding import LONGEST_SIDE_PIXELS, MAX_PIXELS
from pipeline.jobs.submit import MAX_BATCH_JOBS
from pipeline.policies.retries import MAX_ATTEMPTS
from schemas.answer_schema import check_answer_schema
from schemas.doorbells import Doorbell, Lane
from schemas.errors import EngineTimeout, ErrorCode, InvalidJob
from schemas.ids import JobId
from schemas.intake import AcceptedReply, OutcomeReply, RefusalError, RefusedReply, parse_intake, reply_queue
from schemas.jobs import MAX_DIALOGUE_CHARACTERS, MAX_IMAGE_BYTES, MAX_IMAGE_CHARACTERS, parse_job
from schemas.published.json_schema import error_table, files, json_schema, with_error_table
from schemas.published.typescript import typescript
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
from tests.support.submitting_page import PAGE, json_examples, text

DOCUMENT = json_schema()
DEFINITIONS: dict[str, Any] = DOCUMENT["$defs"]
RENEW = "run: make types"
JOB = JobId(1024)
PNG = "data:image/png;base64,iVBORw0KGgo="


def accepts(definition: str, value: Any) -> bool:
    schema = {"$ref": f"#/$defs/{definition}", "$defs": DEFINITIONS}
    return bool(Draft202012Validator(schema).is_valid(value))


def test_the_committed_files_are_what_the_code_says() -> None:
    for name, written in files().items():
        assert (ROOT / "docs" / "schemas" / name).read_text(encoding="utf-8") == written, f"{name}: {RENEW}"


def test_the_table_of_errors_on_the_page_is_what_the_code_says() -> None:
    assert error_table() in text(), RENEW
    assert with_error_table(text()) == text()
    assert with_error_table(text().replace(error_table(), "| an older | table |\n")) == text()


def test_it_is_a_schema_and_every_reference_leads_somewhere() -> None:
    Draft202012Validator.check_schema(DOCUMENT)
    found = re.findall(r'"\$ref": "(.*?)"', json.dumps(DOCUMENT))
    assert len(found) > 30
    assert {reference.removeprefix("#/$defs/") for reference in found} <= set(DEFINITIONS)
    assert not [name for name in DEFINITIONS if name.endswith(("-Input", "-Output"))]
    assert "discriminator" not in json.dumps(DOCUMENT)


def test_every_code_has_a_meaning_and_says_whether_to_try_again() -> None:
    assert all(code.meaning for code in ErrorCode)
    assert ErrorCode("engine_timeout") is ErrorCode.ENGINE_TIMEOUT
    assert f"{ErrorCode.ENGINE_TIMEOUT}" == "engine_timeout"
    rows = error_table().splitlines()[2:]
    assert len(rows) == len(ErrorCode)
    assert EngineTimeout.retryable
    assert f"| `engine_timeout` | {ErrorCode.ENGINE_TIMEOUT.meaning} | yes |" in error_table()
    assert f"| `cancelled` | {ErrorCode.CANCELLED.meaning} | no |" in error_table()
    assert {member["const"] for member in DEFINITIONS["ErrorCode"]["oneOf"]} == set(ErrorCode)


def test_the_examples_of_the_page_are_valid() -> None:
    jobs = json_examples("job")
    assert {job["kind"] for job in jobs} == {"intent", "sentiment", "chat", "code", "vision"}
    for job in jobs:
        assert accepts("Job", job), job
        assert accepts("SubmitArguments", job | {"job_key": "a", "reply_to": "crm.replies"}), job
        assert parse_job(job)
    assert all(accepts("Result", result) for result in json_examples("result"))
    assert all(accepts("IntakeReply", reply) for reply in json_examples("reply"))


TEXT = {"kind": "sentiment", "text": "好"}
INTERACTIVE_DEMAND = {"kind": "chat", "messages": [{"role": "user", "content": "你好"}]}
TURNS = [{"speaker": "customer", "text": "好"}]


@pytest.mark.parametrize(
    "job",
    [
        TEXT,
        TEXT | {"kind": "intent", "language": None, "labels": [{"name": "a"}]},
        TEXT | {"turns": None, "context": TURNS, "tags": {"call": "7"}, "tenant": "shop", "priority": -100},
        {"kind": "sentiment", "turns": TURNS, "text": None, "deadline": "2031-05-01T12:00:00+08:00"},
        INTERACTIVE_DEMAND | {"stream": True, "sampling": {"temperature": 0, "stop": ["。"]}, "model": None},
        {"kind": "code", "instruction": "x", "language": "c++"},
        {"kind": "vision", "question": "x", "images": [PNG], "answer_schema": {"type": "object"}},
    ],
)
def test_the_schema_and_the_code_take_the_same_jobs(job: dict[str, Any]) -> None:
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
        {"messages": INTERACTIVE_DEMAND["messages"]},
        TEXT | {"kind": "weather"},
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
        INTERACTIVE_DEMAND | {"messages": []},
        INTERACTIVE_DEMAND | {"messages": [{"role": "robot", "content": "x"}]},
        INTERACTIVE_DEMAND | {"sampling": {"temperature": 3}},
        INTERACTIVE_DEMAND | {"sampling": {"top_p": 0}},
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


def test_the_schema_and_the_code_take_the_same_reply_queues() -> None:
    for queue in ("crm.replies", "a:b-c_d", "x" * 200, None, "", "a b", "x" * 201, "yyc3.intake", "celery", "_kombu.x"):
        try:
            reply_queue({"reply_to": queue}, frozenset())
            taken = True
        except InvalidJob:
            taken = False
        assert accepts("SubmitArguments", TEXT | {"job_key": "k", "reply_to": queue}) is taken, queue


OUTCOMES = [
    Outcome(job_id=JOB, kind="chat", state=JobState.QUEUED),
    Outcome(
        job_id=JOB,
        kind="chat",
        state=JobState.QUEUED,
        error=JobError(code=ErrorCode.ENGINE_UNAVAILABLE, message="its last try failed"),
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
def test_what_is_said_is_valid_and_said_whole(outcome: Outcome) -> None:
    said = json.loads(outcome.model_dump_json())
    assert accepts("Outcome", said)
    assert accepts("Outcome", said | {"something_new": 1})
    for field in said:
        assert not accepts("Outcome", {name: value for name, value in said.items() if name != field}), field
    assert not accepts("Outcome", said | {"state": "lost"})
    assert not accepts("Outcome", said | {"error": {"code": "bad_luck", "message": ""}})
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
        bell = Doorbell(model="cogagent", lane=Lane.BULK, chunk=chunk)
        assert accepts("Doorbell", bell.model_dump(mode="json", exclude_none=True))


NUMBERS = ("minLength", "maxLength", "minItems", "maxItems", "maxProperties", "minimum", "maximum", "exclusiveMinimum")


def numbers(schema: Any) -> set[int]:
    """Every limit in a field's own schema."""
    if isinstance(schema, list):
        return set().union(*[numbers(value) for value in schema])
    if not isinstance(schema, dict):
        return set()
    found = {int(schema[word]) for word in NUMBERS if word in schema}
    found |= {int(most) for most in re.findall(r"\{1,(\d+)\}", schema.get("pattern", ""))}
    return found | numbers([value for word, value in schema.items() if word not in {"default", "description"}])


def limits(definition: str, above: str = "") -> Iterator[tuple[str, set[int]]]:
    """Fields of a definition, and those of what it is made of, such as `turns.text`."""
    for name, schema in DEFINITIONS[definition].get("properties", {}).items():
        yield above + name, numbers(schema) - {MAX_IMAGE_CHARACTERS}
        for inner in re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema)):
            yield from limits(inner, f"{name}.")


def test_the_limits_on_the_page_are_those_of_the_schema() -> None:
    found = re.findall(r"^\| (`.*) \| (.*) \|$", text().partition("## Limits")[2].partition("## Errors")[0], re.M)
    rows = {(path, cell.partition("` of ")[2]): said for cell, said in found for path in re.findall("`(.*?)`", cell)}
    seen = set()
    for definition in [member["$ref"].rpartition("/")[2] for member in DEFINITIONS["SubmitArguments"]["oneOf"]]:
        for path, expected in limits(definition):
            own = (path, {"CodeArguments": "code", "SentimentArguments": "a sentiment"}.get(definition, ""))
            key = own if own in rows else (path, "")
            said = rows.get(key, "")
            seen.add(key)
            for number in expected:
                assert re.search(rf"(?<![\d,-]){number:,}(?!,?\d)", said), (
                    f"{definition}.{path}: {number:,} in {said!r}"
                )
    named = {key for key in rows if key[0] not in {"idempotency_key", "submit_many", "answer_schema"}}
    assert named <= seen, f"no such fields: {named - seen}"
    assert f"together {MAX_DIALOGUE_CHARACTERS:,} characters" in rows["turns", ""]
    assert rows["messages", ""].endswith(rows["turns", ""].partition(", ")[2])
    assert f"{MAX_IMAGE_BYTES >> 20} MiB" in rows["images", ""]
    assert f"{MAX_BATCH_JOBS:,}" in text()


def test_other_numbers_of_the_page_are_those_of_the_code() -> None:
    said = " ".join(text().split())
    assert f"at most {MAX_IMAGE_BYTES >> 20} MiB and {MAX_PIXELS // 1_000_000} million pixels" in said
    assert f"longer than {LONGEST_SIDE_PIXELS:,} pixels" in said
    assert MAX_ATTEMPTS == 5
    assert "five in all" in said
    with pytest.raises(ValueError, match="20,000 bytes"):
        check_answer_schema({"const": "x" * 20_000})


def test_typescript_says_what_the_schema_says() -> None:
    made = typescript(
        {
            "Pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
            "Thing": {
                "type": "object",
                "description": "One thing.\n\nIts comment ends */ here.",
                "properties": {
                    "kind": {"const": "thing"},
                    "mood": {"enum": ["good", "bad"], "type": "string"},
                    "no-name": {"anyOf": [{"$ref": "#/$defs/Pair"}, {"type": "null"}]},
                    "many": {"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "boolean"}]}},
                    "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
                    "anything": {"description": "whatever it is"},
                },
                "required": ["kind"],
            },
        }
    )
    assert made == (
        "export type Pair = [string, number];\n\n"
        "/**\n * One thing.\n *\n * Its comment ends * / here.\n */\n"
        "export type Thing = {\n"
        '  kind: "thing";\n'
        '  mood?: "good" | "bad";\n'
        '  "no-name"?: Pair | null;\n'
        "  many?: Array<number | boolean>;\n"
        "  counts?: Record<string, number>;\n"
        "  /** whatever it is */\n"
        "  anything?: unknown;\n"
        "};\n"
    )
    with pytest.raises(ValueError, match="no TypeScript is known for allOf"):
        typescript({"Thing": {"allOf": []}})


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "schema", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        timeout=60,
    )


def test_the_command_prints_and_writes_what_is_committed(tmp_path: Path) -> None:
    assert json.loads(command().stdout) == DOCUMENT
    assert command("--typescript").stdout == files()["yyc3.d.ts"]
    done = command("--out", str(tmp_path / "new" / "folder"))
    assert (done.returncode, done.stdout) == (0, "")
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "new/folder").iterdir()} == files()
    refused = command("--out", str(PAGE))
    assert refused.returncode == 2
    assert "cannot be written" in refused.stderr
    assert "Traceback" not in refused.stderr
