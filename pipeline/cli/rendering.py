"""Print the outcome of a job: its result first, then the facts that a person needs next."""

import sys
from collections.abc import Iterator

from pipeline import kinds
from pipeline.cli.console import err, out, print_json, shown
from schemas.ids import JobId
from schemas.results import Outcome
from schemas.streams import EndEvent, RestartEvent, StreamEvent, TextEvent


def print_outcome(job_id: JobId, outcome: Outcome, as_json: bool) -> None:
    """Print a job as it is now."""
    if as_json:
        print_json(outcome)
        return
    out.print(shown(_headline(outcome)), markup=False, highlight=False)
    _print_facts(job_id, outcome)


def print_stream(events: Iterator[StreamEvent], as_json: bool) -> Outcome:
    """Print an answer as it is generated; as JSON one event a line."""
    for event in events:
        if as_json:
            print_json(event)
        match event:
            case TextEvent() if not as_json:
                sys.stdout.write(shown(event.text))
                sys.stdout.flush()
            case RestartEvent() if not as_json:
                out.print()
                err.print(f"the attempt failed; attempt {event.attempt} begins the answer again", highlight=False)
            case EndEvent():
                if not as_json:
                    out.print()
                    if event.outcome.error:
                        out.print(shown(_headline(event.outcome)), markup=False, highlight=False)
                    _print_facts(event.job_id, event.outcome)
                return event.outcome
    raise AssertionError("a stream ends with its outcome")


def _headline(outcome: Outcome) -> str:
    if outcome.result is not None:
        return kinds.headline(outcome.result)
    return f"{outcome.state}: {outcome.error.message}" if outcome.error else str(outcome.state)


def _print_facts(job_id: JobId, outcome: Outcome) -> None:
    facts = [f"job {job_id}", str(outcome.state)]
    if outcome.cached_from is not None:
        facts.append(f"answer of job {outcome.cached_from}")
    if outcome.model:
        facts.append(f"{outcome.model} at {outcome.endpoint}" if outcome.endpoint else outcome.model)
    if outcome.timings.first_token_seconds is not None:
        facts.append(f"first token {outcome.timings.first_token_seconds * 1000:.0f} ms")
    if outcome.timings.total_seconds is not None:
        facts.append(f"{outcome.timings.total_seconds * 1000:.0f} ms")
    if outcome.simulated:
        facts.append("simulated: not the answer of a model")
    if outcome.error:
        facts.append(outcome.error.code)
    err.print(shown(" · ".join(facts), err), style="dim", markup=False, highlight=False)
