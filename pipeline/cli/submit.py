"""`yyc3 submit KIND`: one job from the command line."""

import inspect
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.console import Exit, command, err, out, print_json
from pipeline.client import Client
from schemas.errors import InvalidJob, ResultTimeout
from schemas.ids import JobId
from schemas.results import ChatResult, IntentResult, JobState, Outcome, SentimentResult

_PATIENCE_SECONDS = 3.0
submit = typer.Typer(help="Submit one job.", no_args_is_help=True)

Text = Annotated[str, typer.Option("--text", help="What was said; @FILE reads a file.")]


def _text(value: str) -> str:
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidJob(f"text: {value[1:]} cannot be read as UTF-8 text: {error}") from error


def _submitted(
    job: dict[str, Any],
    model: Annotated[
        str | None, typer.Option(help="A model of models.toml; the first that can do it if left out.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Idempotency key: the same key with the same job is the same job.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="A label to count by.")] = "default",
    priority: Annotated[int, typer.Option(help="Lower goes first.")] = 0,
    deadline: Annotated[datetime | None, typer.Option(help="Expire the job after this moment (local time).")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result and print it.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Stop waiting after so many seconds; the job goes on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Submit a job with the options that every kind has; wait for it if asked to."""
    given: dict[str, Any] = {"model": model, "idempotency_key": key, "tenant": tenant, "priority": priority}
    given["deadline"] = deadline.astimezone() if deadline else None
    with Client() as client:
        job_id = client.submit(job | {name: value for name, value in given.items() if value is not None})
        if not wait:
            print_json({"job_id": job_id}) if as_json else out.print(
                f"job {job_id} is stored; see: yyc3 jobs show {job_id}"
            )
            return
        try:
            outcome = _awaited(client, job_id, timeout)
        except ResultTimeout as error:
            print_json({"job_id": job_id, "error": error.code}) if as_json else err.print(
                error.message, highlight=False
            )
            raise typer.Exit(Exit.SOME_FAILED) from None
    print_outcome(job_id, outcome, as_json)
    if outcome.state is not JobState.SUCCEEDED:
        raise typer.Exit(Exit.SOME_FAILED)


def _awaited(client: Client, job_id: JobId, timeout: float | None) -> Outcome:
    """The result; after a few seconds without one a person is told what it waits for."""
    if timeout is not None and timeout <= _PATIENCE_SECONDS:
        return client.result(job_id, timeout)
    try:
        return client.result(job_id, _PATIENCE_SECONDS)
    except ResultTimeout:
        seen = client.look(job_id)
        if seen.state is JobState.QUEUED:
            reason = f"its last try ended with {seen.error.code}" if seen.error else "no worker has taken it yet"
            err.print(f"job {job_id} waits: {reason}; see: yyc3 health", highlight=False)
        return client.result(job_id, None if timeout is None else timeout - _PATIENCE_SECONDS)


def _kind(build: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Add a command named like the function: its own options make the job, the common ones submit it."""
    own = list(inspect.signature(build).parameters.values())
    common = list(inspect.signature(_submitted).parameters.values())[1:]

    def run(**given: Any) -> None:
        job = build(**{option.name: given.pop(option.name) for option in own})
        _submitted(job, **given)

    options = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in (*own, *common)]
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    run.__name__, run.__doc__ = build.__name__, build.__doc__
    submit.command(build.__name__)(command(run))
    return build


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


@_kind
def intent(
    text: Text,
    label: Annotated[
        list[str] | None, typer.Option(help="A label of your own, NAME or NAME=DESCRIPTION; repeatable.")
    ] = None,
) -> dict[str, Any]:
    """What does the customer want?"""
    job: dict[str, Any] = {"kind": "intent", "text": _text(text)}
    if label:
        pairs = [entry.partition("=") for entry in label]
        job["labels"] = [{"name": name, "description": description or None} for name, _, description in pairs]
    return job


@_kind
def sentiment(text: Text) -> dict[str, Any]:
    """How does the customer feel?"""
    return {"kind": "sentiment", "text": _text(text)}


@_kind
def chat(
    text: Text,
    system: Annotated[str | None, typer.Option(help="What the model is told before.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 to 2.")] = None,
) -> dict[str, Any]:
    """Continue a conversation."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": _text(text)})
    sampling = {"max_tokens": max_tokens, "temperature": temperature}
    return {"kind": "chat", "messages": messages, "sampling": {k: v for k, v in sampling.items() if v is not None}}


__all__ = ["print_outcome", "submit"]
