"""`yyc3 submit KIND`: one job from the command line."""

import inspect
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.console import Exit, command, err, out, print_json
from pipeline.cli.rendering import print_outcome, print_stream
from pipeline.client import Client
from pipeline.images.decoding import data_url, sniffed
from schemas.errors import InvalidJob, ResultTimeout
from schemas.ids import JobId
from schemas.jobs import MAX_IMAGE_BYTES
from schemas.results import JobState, Outcome

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
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the answer while it is written (chat, code, vision).")
    ] = False,
    timeout: Annotated[float | None, typer.Option(help="Stop waiting after so many seconds; the job goes on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Submit a job with the options that every kind has; wait for it if asked to."""
    given: dict[str, Any] = {"model": model, "idempotency_key": key, "tenant": tenant, "priority": priority}
    given["deadline"] = deadline.astimezone() if deadline else None
    job |= {name: value for name, value in given.items() if value is not None}
    with Client() as client:
        if stream:
            outcome = print_stream(client.stream(job), as_json)
            raise typer.Exit(Exit.DONE if outcome.state is JobState.SUCCEEDED else Exit.SOME_FAILED)
        job_id = client.submit(job)
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


@_kind
def code(
    text: Annotated[str, typer.Option("--text", help="What the code should do; @FILE reads a file.")],
    language: Annotated[str, typer.Option(help="The programming language, such as python.")],
    context: Annotated[str | None, typer.Option(help="Code that is there already; @FILE reads a file.")] = None,
    file_name: Annotated[str | None, typer.Option(help="Where the code belongs.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer; code that is cut is tried again.")] = None,
) -> dict[str, Any]:
    """Write code."""
    job: dict[str, Any] = {"kind": "code", "instruction": _text(text), "language": language}
    job |= {"context": _text(context)} if context else {}
    job |= {"file_name": file_name} if file_name else {}
    return job | ({"sampling": {"max_tokens": max_tokens}} if max_tokens else {})


@_kind
def vision(
    text: Annotated[str, typer.Option("--text", help="The question; @FILE reads a file.")],
    image: Annotated[
        list[str], typer.Option(help="A picture: a PNG, JPEG, WebP or GIF file, or an https URL; repeatable.")
    ],
    schema: Annotated[str | None, typer.Option(help="A JSON schema the answer must obey; @FILE reads a file.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
) -> dict[str, Any]:
    """Look at pictures and answer."""
    job: dict[str, Any] = {"kind": "vision", "question": _text(text), "images": [_image(given) for given in image]}
    if schema:
        try:
            job["answer_schema"] = json.loads(_text(schema))
        except json.JSONDecodeError as error:
            raise InvalidJob(f"schema: is not JSON: {error}") from None
    return job | ({"sampling": {"max_tokens": max_tokens}} if max_tokens else {})


def _image(given: str) -> str:
    """A URL as it is, a file as a data URL."""
    if given.startswith(("https://", "http://", "data:")):
        return given
    try:
        size = Path(given).stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise InvalidJob(f"image: {given} is larger than {MAX_IMAGE_BYTES >> 20} MiB; send a smaller one")
        raw = Path(given).read_bytes()
    except OSError as error:
        raise InvalidJob(f"image: {given} cannot be read: {error.strerror}") from None
    try:
        return data_url(sniffed(raw).lower(), raw)
    except ValueError as error:
        raise InvalidJob(f"image: {given} {error}") from None


__all__ = ["submit"]
