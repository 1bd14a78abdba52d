"""Print the outcome of a job: its result first, then the facts that a person needs next."""

import sys
from collections.abc import Iterator

from pipeline import kinds
from pipeline.cli.console import goes_on, print_json, say, say_as_is, shown, table, tell
from pipeline.cli.language import translated
from pipeline.cli.times import when
from pipeline.store.job_records import HistoryEvent
from schemas.ids import JobId
from schemas.results import Outcome
from schemas.streams import EndEvent, RestartEvent, StreamEvent, TextEvent


def print_outcome(job_id: JobId, outcome: Outcome, as_json: bool) -> None:
    """Print a job as it is now."""
    if as_json:
        print_json(outcome)
        return
    _print_headline(outcome)
    _print_facts(job_id, outcome)


def print_stream(events: Iterator[StreamEvent], as_json: bool) -> Outcome:
    """Print an answer as it is generated; as JSON one event a line."""
    for event in events:
        goes_on(f"job {event.job_id} continues; ask again: yyc3 jobs show {event.job_id}")
        if as_json:
            print_json(event)
        match event:
            case TextEvent() if not as_json:
                sys.stdout.write(shown(event.text))
                sys.stdout.flush()
            case RestartEvent() if not as_json:
                say_as_is()
                tell(f"the attempt failed; attempt {event.attempt} begins the answer again")
            case EndEvent():
                if not as_json:
                    say_as_is()
                    if event.outcome.error:
                        _print_headline(event.outcome)
                    _print_facts(event.job_id, event.outcome)
                return event.outcome
    raise AssertionError("a stream ends with its outcome")


def print_history(job_id: int, events: list[HistoryEvent]) -> None:
    """Print the history of a job."""
    rows: list[list[object]] = []
    for one in events:
        what, reason = translated(one.what), translated(one.message or "")
        rows.append([one.replay, when(one.at), what, one.code or "", one.endpoint or "", reason])
    table(f"history of job {job_id}", ["replay", "at", "event", "code", "endpoint", "reason"], rows)


def _headline(outcome: Outcome) -> str:
    if outcome.result is not None:
        return kinds.headline(outcome.result)
    return f"{outcome.state}: {outcome.error.message}" if outcome.error else str(outcome.state)


def _print_headline(outcome: Outcome) -> None:
    """Print the words of a model as they are, and a reason of ours in the language of the terminal."""
    (say_as_is if outcome.result is not None else say)(_headline(outcome))


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
    tell(" · ".join(facts), style="dim")
