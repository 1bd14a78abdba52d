"""Call files and reports, and what Flower remembers of a chunk."""

import json
from pathlib import Path

import pytest
from celery.events.state import State

from pipeline.calls.analysis import plan, report_of
from pipeline.calls.readers.jsonl import BadLine, read_calls
from pipeline.flower.chunks import ChunkTask
from schemas.calls import Call
from schemas.errors import ErrorCode, InvalidCall
from schemas.ids import JobId
from schemas.results import IntentResult, JobError, JobState, Outcome, SentimentLabel, SentimentResult

CALL = {
    "call_id": "c1",
    "extra": "ignored",
    "turns": [
        {"speaker": "agent", "text": "喂"},
        {"speaker": "customer", "text": "我要退款"},
        {"speaker": "customer", "text": "快点"},
    ],
}


def test_bad_lines_are_told_with_file_and_number_and_the_others_go_on(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    lines = [
        "\ufeff" + json.dumps(CALL),
        "not json",
        "",
        json.dumps({"call_id": "x", "turns": []}),
        json.dumps({"call_id": "y", "turns": [{"speaker": "robot", "text": "a"}]}),
        json.dumps(CALL | {"call_id": "c2"}),
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    found = list(read_calls([file]))
    assert [entry.call_id for entry in found if isinstance(entry, Call)] == ["c1", "c2"]
    bad = [entry for entry in found if isinstance(entry, BadLine)]
    assert [entry.line for entry in bad] == [2, 4, 5]
    assert "turns" in bad[1].reason
    assert "turns.0.speaker" in bad[2].reason
    assert str(bad[0]).startswith(f"{file}, line 2: ")


def test_a_line_in_another_encoding_is_a_bad_line(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    file.write_bytes(json.dumps(CALL, ensure_ascii=False).encode("gbk") + b"\n" + json.dumps(CALL).encode())
    first, second = read_calls([file])
    assert isinstance(first, BadLine)
    assert isinstance(second, Call)


def test_a_file_that_is_not_there_is_refused_before_any_is_read(tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps(CALL))
    with pytest.raises(InvalidCall, match=r"absent\.jsonl cannot be read: No such file"):
        next(read_calls([good, tmp_path / "absent.jsonl"]))


def test_a_call_is_one_intent_one_sentiment_and_one_sentiment_a_customer_turn() -> None:
    planned = plan(Call.model_validate(CALL))
    assert [job.kind for job in planned.jobs] == ["intent", "sentiment", "sentiment", "sentiment"]
    assert planned.turn_indexes == [None, None, 1, 2]


def test_a_report_has_what_succeeded_and_says_what_did_not() -> None:
    planned = plan(Call.model_validate(CALL))

    def outcome(kind: str, result: object, error: ErrorCode | None = None) -> Outcome:
        return Outcome(
            job_id=JobId(1),
            kind=kind,
            state=JobState.FAILED if error else JobState.SUCCEEDED,
            result=result,  # type: ignore[arg-type]
            error=JobError(code=error, message="why") if error else None,
            model="m",
            template_hash=f"h-{kind}",
            simulated=True,
        )

    mood = SentimentResult(label=SentimentLabel.NEGATIVE, score=-0.5, confidence=0.6)
    outcomes = [
        outcome("intent", IntentResult(label="refund", confidence=0.9)),
        outcome("sentiment", mood),
        outcome("sentiment", None, ErrorCode.ENGINE_TIMEOUT),
        outcome("sentiment", mood),
    ]
    report = report_of(planned, outcomes)
    assert report.model_dump(mode="json") == {
        "call_id": "c1",
        "intents": [{"label": "refund", "confidence": 0.9}],
        "sentiment": {"label": "negative", "score": -0.5, "confidence": 0.6},
        "turns": [{"index": 2, "sentiment": {"label": "negative", "score": -0.5, "confidence": 0.6}}],
        "models": {"intent": "m", "sentiment": "m", "turn_sentiment": "m"},
        "templates": {"intent": "h-intent", "sentiment": "h-sentiment", "turn_sentiment": "h-sentiment"},
        "simulated": True,
        "errors": [{"code": "engine_timeout", "message": "why", "turn_index": 1}],
    }


def task(*events: tuple[str, dict[str, object]]) -> ChunkTask:
    found = ChunkTask(uuid="u", cluster_state=State())
    for number, (kind, fields) in enumerate(events):
        found.event(kind, float(number), float(number), fields)
    return found


RECEIVED = ("received", {"args": "({'v': 1, 'model': 'chatglm3-6b', 'lane': 'bulk'},)"})
PROGRESS = ("progress", {"rows": 100, "rows_done": 40, "chunk": 2048, "batch": 7})


def test_progress_brings_numbers_and_leaves_the_state_alone() -> None:
    seen = task(RECEIVED, ("started", {}), PROGRESS)
    assert (seen.state, seen.progress, seen.model, seen.batch) == ("STARTED", "40 / 100", "chatglm3-6b", 7)
    assert seen.as_dict()["progress"] == "40 / 100"


def test_a_revoked_chunk_is_revoked_although_it_sent_progress() -> None:
    assert task(RECEIVED, ("started", {}), PROGRESS, ("revoked", {})).state == "REVOKED"


def test_a_late_progress_event_does_not_reopen_a_chunk_that_ended() -> None:
    result = "{'chunk': 2048, 'batch': 7, 'rows': 100, 'rows_done': 100, 'rows_failed': 0}"
    seen = task(RECEIVED, ("started", {}), ("succeeded", {"result": result, "runtime": 1.0}), PROGRESS)
    assert (seen.state, seen.progress) == ("SUCCESS", "100 / 100")


def test_foreign_arguments_are_no_trouble() -> None:
    assert task(("received", {"args": "(<object>, ...)"}), ("succeeded", {"result": "None"})).state == "SUCCESS"
