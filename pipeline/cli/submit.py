"""`yyc3 submit KIND`: submit one job from the command line."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.console import command, goes_on, print_json, say, say_as_is, tag_of, tell, with_options
from pipeline.cli.exit_codes import Exit
from pipeline.cli.rendering import print_outcome, print_stream
from pipeline.cli.times import moment
from pipeline.client import Client
from pipeline.images.decoding import data_url, sniff_type
from schemas.errors import InvalidJob, ResultTimeout
from schemas.ids import JobId
from schemas.limits import MAX_IMAGE_BYTES
from schemas.results import JobState, Outcome

_QUIET_SECONDS = 3.0
submit = typer.Typer(help="Submit one job.", no_args_is_help=True)
Text = Annotated[str, typer.Option("--text", help="The utterance; @FILE reads a file, @@ is an @.")]
Labels = Annotated[
    list[str] | None, typer.Option("--label", help="NAME or NAME=description; repeat it. Default: call-centre labels.")
]


@dataclass(frozen=True)
class SubmitOptions:
    """The options of every kind."""

    model: Annotated[
        str | None, typer.Option(help="Entry of models.toml; default: the first one that supports the kind.")
    ] = None
    key: Annotated[
        str | None, typer.Option("--key", help="Idempotency key: the same key with the same job is the same job.")
    ] = None
    tenant: Annotated[str, typer.Option(help="A label to count by.")] = "default"
    priority: Annotated[int, typer.Option(help="Lower goes first.")] = 0
    deadline: Annotated[
        str | None, typer.Option(help="Expire the job in 90m, 2h, 3d, or at a time like 2026-11-22T03:00+08:00.")
    ] = None
    tag: Annotated[list[str] | None, typer.Option("--tag", help="NAME=VALUE, to find the job again; repeat it.")] = None
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result and print it.")] = False
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the answer as it is generated (chat, code, vision).")
    ] = False
    timeout: Annotated[
        float | None, typer.Option(help="Stop waiting after this many seconds; the job continues.", min=0)
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False

    def add_to(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return a job with the fields that every kind has."""
        given = {
            "model": self.model,
            "idempotency_key": self.key,
            "tenant": self.tenant,
            "priority": self.priority,
            "tags": dict(tag_of(one) for one in self.tag) if self.tag else None,
            "deadline": moment("--deadline", self.deadline),
        }
        return job | {name: value for name, value in given.items() if value is not None}


@submit.command()
@command
@with_options(SubmitOptions)
def intent(text: Text, label: Labels = None, *, options: SubmitOptions) -> None:
    """Find the intent of an utterance."""
    job: dict[str, Any] = {"kind": "intent", "text": _text(text)}
    if label:
        pairs = [one.partition("=") for one in label]
        job["labels"] = [{"name": name, "description": description or None} for name, _, description in pairs]
    _submit(job, options)


@submit.command()
@command
@with_options(SubmitOptions)
def sentiment(text: Text, *, options: SubmitOptions) -> None:
    """Find the sentiment of an utterance."""
    _submit({"kind": "sentiment", "text": _text(text)}, options)


@submit.command()
@command
@with_options(SubmitOptions)
def chat(
    text: Text,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of the answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 to 2.")] = None,
    *,
    options: SubmitOptions,
) -> None:
    """Continue a conversation."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": _text(text)})
    sampling = {"max_tokens": max_tokens, "temperature": temperature}
    given = {name: value for name, value in sampling.items() if value is not None}
    _submit({"kind": "chat", "messages": messages, "sampling": given}, options)


@submit.command()
@command
@with_options(SubmitOptions)
def code(
    text: Annotated[str, typer.Option("--text", help="What the code should do; @FILE reads a file.")],
    language: Annotated[str, typer.Option(help="Programming language, such as python.")],
    context: Annotated[str | None, typer.Option(help="Existing code; @FILE reads a file.")] = None,
    file_name: Annotated[str | None, typer.Option(help="The file that the code is for.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of the answer; code that is cut off is retried.")
    ] = None,
    *,
    options: SubmitOptions,
) -> None:
    """Write code."""
    job: dict[str, Any] = {"kind": "code", "instruction": _text(text), "language": language}
    job |= {"context": _text(context)} if context is not None else {}
    job |= {"file_name": file_name} if file_name is not None else {}
    job |= {"sampling": {"max_tokens": max_tokens}} if max_tokens is not None else {}
    _submit(job, options)


@submit.command()
@command
@with_options(SubmitOptions)
def vision(
    text: Annotated[str, typer.Option("--text", help="The question; @FILE reads a file.")],
    image: Annotated[list[str], typer.Option(help="A PNG, JPEG, WebP or GIF file, or an https URL; repeat it.")],
    schema: Annotated[
        str | None, typer.Option(help="JSON schema that the answer must conform to; @FILE reads a file.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of the answer.")] = None,
    *,
    options: SubmitOptions,
) -> None:
    """Answer a question about images."""
    job: dict[str, Any] = {"kind": "vision", "question": _text(text), "images": [_image(given) for given in image]}
    if schema is not None:
        try:
            job["answer_schema"] = json.loads(_text(schema))
        except json.JSONDecodeError as error:
            raise InvalidJob(f"schema: is not JSON: {error}") from None
        except RecursionError:
            raise InvalidJob("schema: is nested too deep") from None
    job |= {"sampling": {"max_tokens": max_tokens}} if max_tokens is not None else {}
    _submit(job, options)


def _text(value: str) -> str:
    """Return a text, or that of a file; a second @ stands for one of the text."""
    if not value.startswith("@"):
        return value
    if value.startswith("@@"):
        return value[1:]
    try:
        return Path(value[1:]).read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise InvalidJob(f"text: {value[1:]} is not text in UTF-8; convert it, or send it as an image") from None
    except (OSError, ValueError) as error:
        raise InvalidJob(
            f"text: {value[1:]} cannot be read: {_reason(error)}; a text that begins with @ is written @@"
        ) from None


def _reason(error: OSError | ValueError) -> str:
    """Return why a file cannot be read; names with a NUL are refused as values."""
    return (error.strerror if isinstance(error, OSError) else None) or "no file has such a name"


def _image(given: str) -> str:
    """Return a URL as it is, and a file as a data URL."""
    if given.startswith(("https://", "http://", "data:")):
        return given
    try:
        size = Path(given).stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise InvalidJob(f"image: {given} is larger than {MAX_IMAGE_BYTES >> 20} MiB; send a smaller one")
        raw = Path(given).read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidJob(f"image: {given} cannot be read: {_reason(error)}") from None
    try:
        return data_url(sniff_type(raw).lower(), raw)
    except ValueError as error:
        raise InvalidJob(f"image: {given}: {error}") from None


def _submit(job: dict[str, Any], options: SubmitOptions) -> None:
    """Submit a job, and wait for it or follow it if the options say so."""
    job = options.add_to(job)
    goes_on("if the job was stored already, it continues; see: yyc3 jobs list")
    with Client() as client:
        try:
            if options.stream:
                outcome = print_stream(client.stream(job, options.timeout), options.as_json)
                raise typer.Exit(Exit.DONE if outcome.state is JobState.SUCCEEDED else Exit.SOME_FAILED)
            job_id = client.submit(job)
            goes_on(f"job {job_id} continues; ask again: yyc3 jobs show {job_id}")
            if not options.wait:
                _print_submitted(job_id, options.as_json)
                return
            outcome = _wait(client, job_id, options.timeout)
        except ResultTimeout as error:
            if options.as_json:
                print_json({"job_id": error.facts["job_id"], "error": error.code})
            else:
                if options.stream:
                    say_as_is()  # the answer stands there so far
                tell(error.message)
            raise typer.Exit(Exit.SOME_FAILED) from None
    print_outcome(job_id, outcome, options.as_json)
    if outcome.state is not JobState.SUCCEEDED:
        raise typer.Exit(Exit.SOME_FAILED)


def _print_submitted(job_id: JobId, as_json: bool) -> None:
    if as_json:
        print_json({"job_id": job_id})
    else:
        say(f"job {job_id} is stored; see: yyc3 jobs show {job_id}")


def _wait(client: Client, job_id: JobId, timeout: float | None) -> Outcome:
    """Return the outcome; after a few seconds without one, print why it waits."""
    if timeout is not None and timeout <= _QUIET_SECONDS:
        return client.result(job_id, timeout)
    try:
        return client.result(job_id, _QUIET_SECONDS)
    except ResultTimeout:
        seen = client.get(job_id)
        if seen.state is JobState.QUEUED:
            reason = f"its last attempt ended with {seen.error.code}" if seen.error else "no worker has claimed it yet"
            tell(f"job {job_id} waits: {reason}; see: yyc3 health")
        return client.result(job_id, None if timeout is None else timeout - _QUIET_SECONDS)
