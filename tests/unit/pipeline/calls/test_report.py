"""The report of a call, made of the outcomes of its jobs."""

from pipeline.calls.plan import plan
from pipeline.calls.report import report_of
from schemas.calls import Call
from schemas.errors import ErrorCode
from schemas.ids import JobId
from schemas.results import IntentResult, JobError, JobState, Outcome, Result, SentimentLabel, SentimentResult
from tests.unit.pipeline.calls.call import CALL


def test_a_report_has_results_and_names_the_jobs_without_one() -> None:
    planned = plan(Call.model_validate(CALL))

    def outcome(kind: str, result: Result | None, error: ErrorCode | None = None) -> Outcome:
        return Outcome(
            job_id=JobId(1),
            kind=kind,
            state=JobState.FAILED if error else JobState.SUCCEEDED,
            result=result,
            error=JobError(code=error, message="why") if error else None,
            model="m",
            template_hash=f"h-{kind}",
            simulated=True,
        )

    negative = SentimentResult(label=SentimentLabel.NEGATIVE, score=-0.5, confidence=0.6)
    outcomes = [
        outcome("intent", IntentResult(label="refund", confidence=0.9)),
        outcome("sentiment", negative),
        outcome("sentiment", None, ErrorCode.ENGINE_TIMEOUT),
        outcome("sentiment", negative),
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
