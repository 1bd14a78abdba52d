"""How a job's outcome is shown: its result first, then what a person would ask next."""

import sys
from collections.abc import Iterator

from pipeline.cli.console import err, out, print_json
from schemas.ids import JobId
from schemas.results import ChatResult, CodeResult, IntentResult, Outcome, SentimentResult, VisionResult
from schemas.streams import EndEvent, RestartEvent, StreamEvent, TextEvent


def print_outcome(job_id: JobId, outcome: Outcome, as_json: bool) -> None:
    """A job as it is now."""
    if as_json:
        print_json(outcome)
        return
    out.print(_headline(outcome), markup=False, highlight=False)
    _print_facts(job_id, outcome)


def print_stream(events: Iterator[StreamEvent], as_json: bool) -> Outcome:
    """An answer while it is written; as JSON one event a line."""
    for event in events:
        if as_json:
            print_json(event)
        match event:
            case TextEvent() if not as_json:
                sys.stdout.write(event.text)
                sys.stdout.flush()
            case RestartEvent() if not as_json:
                out.print()
                err.print(f"its try failed; try {event.try_number} begins the answer again", highlight=False)
            case EndEvent():
                if not as_json:
                    out.print()
                    if event.outcome.error:
                        out.print(_headline(event.outcome), markup=False, highlight=False)
                    _print_facts(event.job_id, event.outcome)
                return event.outcome
    raise AssertionError("a stream ends with its outcome")


def _headline(outcome: Outcome) -> str:
    match outcome.result:
        case IntentResult() as result:
            return result.label + _percent(result.confidence)
        case SentimentResult() as result:
            return f"{result.label} (score {result.score:+.2f}){_percent(result.confidence)}"
        case ChatResult() | VisionResult() as result:
            return result.text
        case CodeResult() as result:
            return result.code if result.explanation is None else f"{result.code}\n\n{result.explanation}"
        case None:
            return f"{outcome.state}: {outcome.error.message}" if outcome.error else str(outcome.state)


def _percent(confidence: float | None) -> str:
    return "" if confidence is None else f", confidence {confidence:.0%}"


def _print_facts(job_id: JobId, outcome: Outcome) -> None:
    facts = [f"job {job_id}", str(outcome.state)]
    if outcome.cached_from is not None:
        facts.append(f"asked before by job {outcome.cached_from}")
    if outcome.model:
        facts.append(f"{outcome.model} at {outcome.endpoint}" if outcome.endpoint else outcome.model)
    if outcome.timings.first_token_seconds is not None:
        facts.append(f"first token {outcome.timings.first_token_seconds * 1000:.0f} ms")
    if outcome.timings.total_seconds is not None:
        facts.append(f"{outcome.timings.total_seconds * 1000:.0f} ms")
    if outcome.simulated:
        facts.append("simulated: no model answered this")
    if outcome.error:
        facts.append(outcome.error.code)
    err.print(" · ".join(facts), style="dim", markup=False, highlight=False)


__all__ = ["print_outcome", "print_stream"]
