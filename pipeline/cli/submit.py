"""`yyc3 submit KIND`: one job from the command line."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.console import Exit, command, err, out, print_json
from pipeline.client import Client
from schemas.errors import InvalidJob, ResultTimeout
from schemas.ids import JobId
from schemas.results import ChatResult, IntentResult, JobState, Outcome, SentimentResult

submit = typer.Typer(help="Submit one job.", no_args_is_help=True)

Text = Annotated[str, typer.Option("--text", help="What was said; @FILE reads a file.")]
Model = Annotated[str | None, typer.Option(help="A model of models.toml; the first that can do it if left out.")]
Key = Annotated[
    str | None, typer.Option("--key", help="Idempotency key: the same key with the same job is the same job.")
]
Tenant = Annotated[str, typer.Option(help="A label to count by.")]
Priority = Annotated[int, typer.Option(help="Lower goes first.")]
Deadline = Annotated[datetime | None, typer.Option(help="Expire the job after this moment (local time).")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the result and print it.")]
Timeout = Annotated[float | None, typer.Option(help="Stop waiting after so many seconds; the job goes on.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _text(value: str) -> str:
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidJob(f"text: {value[1:]} cannot be read as UTF-8 text: {error}") from error


def _go(job: dict[str, Any], common: dict[str, Any], wait: bool, timeout: float | None, as_json: bool) -> None:
    deadline = common.pop("deadline")
    given = {key: value for key, value in common.items() if value is not None}
    if deadline is not None:
        given["deadline"] = deadline.astimezone()
    with Client() as client:
        job_id = client.submit(job | given)
        if not wait:
            print_json({"job_id": job_id}) if as_json else out.print(
                f"job {job_id} is stored; see: yyc3 jobs show {job_id}"
            )
            return
        try:
            outcome = client.result(job_id, timeout)
        except ResultTimeout as error:
            print_json({"job_id": job_id, "error": error.code}) if as_json else err.print(
                error.message, highlight=False
            )
            raise typer.Exit(Exit.SOME_FAILED) from None
    print_outcome(job_id, outcome, as_json)
    if outcome.state is not JobState.SUCCEEDED:
        raise typer.Exit(Exit.SOME_FAILED)


def print_outcome(job_id: JobId, outcome: Outcome, as_json: bool) -> None:
    """Show a job: its result first, then what a person would ask next."""
    if as_json:
        print_json(outcome)
        return
    match outcome.result:
        case IntentResult() as result:
            line = result.label + _percent(result.confidence)
        case SentimentResult() as result:
            line = f"{result.label} (score {result.score:+.2f}){_percent(result.confidence)}"
        case ChatResult() as result:
            line = result.text
        case None:
            line = f"{outcome.state}: {outcome.error.message}" if outcome.error else str(outcome.state)
    out.print(line, markup=False, highlight=False)
    facts = [f"job {job_id}", str(outcome.state)]
    if outcome.model:
        facts.append(f"{outcome.model} at {outcome.endpoint}" if outcome.endpoint else outcome.model)
    if outcome.timings.total_seconds is not None:
        facts.append(f"{outcome.timings.total_seconds * 1000:.0f} ms")
    if outcome.simulated:
        facts.append("simulated: no model answered this")
    if outcome.error:
        facts.append(outcome.error.code)
    err.print(" · ".join(facts), style="dim", markup=False, highlight=False)


def _percent(confidence: float | None) -> str:
    return "" if confidence is None else f", confidence {confidence:.0%}"


@submit.command("intent")
@command
def intent(
    text: Text,
    label: Annotated[
        list[str] | None, typer.Option(help="A label of your own, NAME or NAME=DESCRIPTION; repeatable.")
    ] = None,
    model: Model = None,
    key: Key = None,
    tenant: Tenant = "default",
    priority: Priority = 0,
    deadline: Deadline = None,
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """What does the customer want?"""
    job: dict[str, Any] = {"kind": "intent", "text": _text(text)}
    if label:
        pairs = [entry.partition("=") for entry in label]
        job["labels"] = [{"name": name, "description": description or None} for name, _, description in pairs]
    common = {"model": model, "idempotency_key": key, "tenant": tenant, "priority": priority, "deadline": deadline}
    _go(job, common, wait, timeout, as_json)


@submit.command("sentiment")
@command
def sentiment(
    text: Text,
    model: Model = None,
    key: Key = None,
    tenant: Tenant = "default",
    priority: Priority = 0,
    deadline: Deadline = None,
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """How does the customer feel?"""
    common = {"model": model, "idempotency_key": key, "tenant": tenant, "priority": priority, "deadline": deadline}
    _go({"kind": "sentiment", "text": _text(text)}, common, wait, timeout, as_json)


@submit.command("chat")
@command
def chat(
    text: Text,
    system: Annotated[str | None, typer.Option(help="What the model is told before.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 to 2.")] = None,
    model: Model = None,
    key: Key = None,
    tenant: Tenant = "default",
    priority: Priority = 0,
    deadline: Deadline = None,
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Continue a conversation."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": _text(text)})
    sampling = {"max_tokens": max_tokens, "temperature": temperature}
    job = {"kind": "chat", "messages": messages, "sampling": {k: v for k, v in sampling.items() if v is not None}}
    common = {"model": model, "idempotency_key": key, "tenant": tenant, "priority": priority, "deadline": deadline}
    _go(job, common, wait, timeout, as_json)


__all__ = ["print_outcome", "submit"]
