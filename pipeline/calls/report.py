"""The report of a call, made of the outcomes of its jobs. Pure."""

from pipeline.calls.plan import PlannedCall
from schemas.calls import CallProblem, CallReport, IntentFinding, SentimentFinding, TurnFinding
from schemas.errors import ErrorCode
from schemas.results import IntentResult, JobState, Outcome, SentimentResult


def report_of(planned: PlannedCall, outcomes: list[Outcome]) -> CallReport:
    """Return the report of a call; `outcomes` are those of its jobs, in the order of the plan."""
    report = CallReport(
        call_id=planned.call.call_id,
        intents=[],
        sentiment=None,
        turns=[],
        models={},
        templates={},
        simulated=any(outcome.simulated for outcome in outcomes),
        errors=list(planned.problems),
    )
    for turn_index, outcome in zip(planned.turn_indexes, outcomes, strict=True):
        part = outcome.kind if turn_index is None else "turn_sentiment"
        if outcome.model:
            report.models[part] = outcome.model
        if outcome.template_hash:
            report.templates[part] = outcome.template_hash
        _add(report, outcome, turn_index)
    return report


def _add(report: CallReport, outcome: Outcome, turn_index: int | None) -> None:
    match outcome.result:
        case IntentResult() as intent:
            report.intents.append(IntentFinding(label=intent.label, confidence=intent.confidence))
        case SentimentResult() as sentiment:
            found = SentimentFinding(label=sentiment.label, score=sentiment.score, confidence=sentiment.confidence)
            if turn_index is None:
                report.sentiment = found
            else:
                report.turns.append(TurnFinding(index=turn_index, sentiment=found))
        case _:
            report.errors.append(_problem(outcome, turn_index))


def _problem(outcome: Outcome, turn_index: int | None) -> CallProblem:
    if outcome.error is not None:
        return CallProblem(code=outcome.error.code, message=outcome.error.message, turn_index=turn_index)
    assert outcome.state is not JobState.SUCCEEDED
    return CallProblem(code=ErrorCode.INVALID_OUTPUT, message=f"the job is {outcome.state}", turn_index=turn_index)
