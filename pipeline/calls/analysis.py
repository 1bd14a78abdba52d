"""Jobs of a call, and the report made of their outcomes. Calls pass through in windows, so memory does not grow."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from uuid import uuid4

from pipeline.jobs.submit import Batch, Submitter
from pipeline.jobs.wait import patiently
from pipeline.store import Database, queries
from schemas.calls import Call, CallProblem, CallReport, IntentReading, SentimentReading, Speaker, TurnReading
from schemas.errors import ErrorCode, InvalidJob
from schemas.jobs import Job, parse_job
from schemas.results import IntentResult, JobState, Outcome, SentimentResult

_WINDOW_JOBS = 20_000
_WINDOWS_AHEAD = 2
_LOOK_SECONDS = 0.2


@dataclass(slots=True)
class Tally:
    """What was done so far, in jobs and calls; `waits_for` says why something is to be tried again."""

    calls: int = 0
    jobs: int = 0
    settled: int = 0
    succeeded: int = 0
    failed: int = 0
    waits_for: ErrorCode | None = None


@dataclass(slots=True)
class _Planned:
    """A call and its jobs; `turn_indexes` says which turn a job is about, None for the whole call."""

    call: Call
    jobs: list[Job] = field(default_factory=list)
    turn_indexes: list[int | None] = field(default_factory=list)
    problems: list[CallProblem] = field(default_factory=list)


def plan(call: Call, model: str | None = None) -> _Planned:
    """The jobs of a call: its intent, its sentiment, then each customer turn's sentiment."""
    planned = _Planned(call)
    turns = [{"speaker": turn.speaker, "text": turn.text} for turn in call.turns]
    common = {"language": call.language, "model": model, "tags": {"call_id": call.call_id}}
    wanted: list[tuple[int | None, dict[str, object]]] = [
        (None, {"kind": "intent", "turns": turns, **common}),
        (None, {"kind": "sentiment", "turns": turns, **common}),
    ]
    for index, turn in enumerate(call.turns):
        if turn.speaker is Speaker.CUSTOMER:
            wanted.append((index, {"kind": "sentiment", "text": turn.text, **common}))
    for turn_index, job in wanted:
        try:
            planned.jobs.append(parse_job(job))
            planned.turn_indexes.append(turn_index)
        except InvalidJob as error:
            planned.problems.append(CallProblem(code=error.code, message=error.message, turn_index=turn_index))
    return planned


async def analyze(
    submitter: Submitter,
    database: Database,
    calls: Iterable[Call],
    *,
    name: str,
    model: str | None = None,
    progress: Callable[[Tally], None] = lambda _: None,
) -> AsyncIterator[CallReport]:
    """Reports in the order of the calls.

    A few windows of jobs are under way at once; a window's reports come when all its jobs are settled.

    Raises:
        PipelineError: a server is away. Jobs that were submitted go on.
    """
    tally = Tally()
    under_way: list[tuple[list[_Planned], Batch | None]] = []
    finished_jobs = 0
    analysis = uuid4().hex
    for number, window in enumerate(_windows(calls, model)):
        jobs = [job for planned in window for job in planned.jobs]
        batch = await _submitted(submitter, jobs, name, f"{analysis}.{number}") if jobs else None
        tally.calls += len(window)
        tally.jobs += len(jobs)
        under_way.append((window, batch))
        if len(under_way) < _WINDOWS_AHEAD:
            continue
        async for report in _reports(database, *under_way.pop(0), tally, finished_jobs, progress):
            yield report
        finished_jobs = tally.settled
    for window, batch in under_way:
        async for report in _reports(database, window, batch, tally, finished_jobs, progress):
            yield report
        finished_jobs = tally.settled


async def _submitted(submitter: Submitter, jobs: list[Job], name: str, key: str) -> Batch:
    """Submit a window; the first one fails at once where there is no database, later ones wait it out.

    The key makes it safe to submit again when a reply was lost.
    """
    if key.endswith(".0"):
        return await submitter.submit_many(jobs, name=name, idempotency_key=key)
    return await patiently(lambda: submitter.submit_many(jobs, name=name, idempotency_key=key))


def _windows(calls: Iterable[Call], model: str | None) -> Iterator[list[_Planned]]:
    window: list[_Planned] = []
    jobs = 0
    for call in calls:
        planned = plan(call, model)
        if window and jobs + len(planned.jobs) > _WINDOW_JOBS:
            yield window
            window, jobs = [], 0
        window.append(planned)
        jobs += len(planned.jobs)
    if window:
        yield window


async def _reports(
    database: Database,
    window: list[_Planned],
    batch: Batch | None,
    tally: Tally,
    finished_jobs: int,
    progress: Callable[[Tally], None],
) -> AsyncIterator[CallReport]:
    outcomes: AsyncIterator[Outcome] | None = None
    if batch is not None:
        while True:
            state = await patiently(lambda: queries.batch_progress(database, batch.batch_id))
            tally.settled, tally.waits_for = finished_jobs + state.settled, state.last_code
            progress(tally)
            if state.finished:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        tally.succeeded += state.succeeded
        tally.failed += state.settled - state.succeeded
        outcomes = queries.batch_outcomes(database, batch.batch_id)
    for planned in window:
        found = [await anext(outcomes) for _ in planned.jobs] if outcomes is not None else []
        yield report_of(planned, found)


def report_of(planned: _Planned, outcomes: list[Outcome]) -> CallReport:
    """One output line of the outcomes of a call's jobs, in the order of the plan."""
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
        match outcome.result:
            case IntentResult() as intent:
                report.intents.append(IntentReading(label=intent.label, confidence=intent.confidence))
            case SentimentResult() as sentiment:
                found = SentimentReading(label=sentiment.label, score=sentiment.score, confidence=sentiment.confidence)
                if turn_index is None:
                    report.sentiment = found
                else:
                    report.turns.append(TurnReading(index=turn_index, sentiment=found))
            case _:
                report.errors.append(_problem(outcome, turn_index))
    return report


def _problem(outcome: Outcome, turn_index: int | None) -> CallProblem:
    if outcome.error is not None:
        return CallProblem(code=outcome.error.code, message=outcome.error.message, turn_index=turn_index)
    assert outcome.state is not JobState.SUCCEEDED
    return CallProblem(code=ErrorCode.INVALID_OUTPUT, message=f"the job is {outcome.state}", turn_index=turn_index)


__all__ = ["Tally", "analyze", "plan", "report_of"]
