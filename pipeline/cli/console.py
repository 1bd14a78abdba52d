"""What every command shares: one sentence for errors, exit codes, options, JSON or a table."""

import asyncio
import inspect
import json
import re
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from datetime import datetime
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from pipeline.cli.exit_codes import Exit
from pipeline.cli.language import translated
from pipeline.files import DISK_IS_FULL
from pipeline.store import Database
from pipeline.wiring import Wiring
from schemas.errors import BrokerError, ConfigurationError, InvalidSetting, PipelineError, StoreError, SubmissionError
from schemas.job import can_be_stored

P = ParamSpec("P")
T = TypeVar("T")
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)
# All but tab and line feed; also those of eight bits, which some terminals obey.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_goes_on: list[str] = []
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _exit_for(error: PipelineError) -> Exit:
    if isinstance(error, SubmissionError | ConfigurationError) and not error.retryable:
        return Exit.BAD_INPUT
    busy = isinstance(error, BrokerError | StoreError | SubmissionError) and error.retryable
    return Exit.UNREACHABLE if busy else Exit.SOME_FAILED


@contextmanager
def _one_sentence() -> Iterator[None]:
    _goes_on.clear()
    try:
        yield
    except PipelineError as error:
        _tell_error(error.message)
        _tell_notes(error)
        raise typer.Exit(_exit_for(error)) from None
    except KeyboardInterrupt as stop:
        tell("; ".join(["stopped", *_goes_on]))
        _tell_notes(stop)
        raise typer.Exit(Exit.STOPPED) from None
    except BrokenPipeError:
        sys.stderr.close()  # the reader of the output is gone: no message can reach it
        raise typer.Exit(Exit.DONE) from None
    except OSError as error:
        if error.errno not in DISK_IS_FULL:
            raise
        _tell_error("; ".join([f"the output cannot be written: {error.strerror}", *_goes_on]))
        raise typer.Exit(Exit.BAD_INPUT) from None


def _tell_error(sentence: str) -> None:
    err.print(f"[red]{translated('error')}[/red]", end=" ")
    tell(sentence)


def _tell_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        tell(note)


def goes_on(text: str) -> None:
    """Say what goes on, and how to ask for it again, if this command is stopped with Ctrl-C from now on."""
    _goes_on[:] = [text]


def say(text: str, style: str | None = None) -> None:
    """Print a text of ours on stdout, in the language of the terminal."""
    say_as_is(translated(text), style)


def say_as_is(text: str = "", style: str | None = None) -> None:
    """Print the words of a caller or a model on stdout."""
    out.print(shown(text), markup=False, highlight=False, style=style)


def tell(text: str, style: str | None = None) -> None:
    """Print a text of ours on stderr, in the language of the terminal."""
    err.print(shown(translated(text), err), markup=False, highlight=False, style=style)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def shown(text: str, console: Console = out) -> str:
    """Return a text of a model or a caller for the output: at a terminal its control characters are shown and do nothing."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text) if console.is_terminal else text


def command(function: Callable[P, T]) -> Callable[P, T]:
    """Wrap a command: an error of ours becomes one sentence and an exit code."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with _one_sentence():
            return function(*args, **kwargs)

    return wrapped


def with_options(options: type[Any]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Add the fields of a dataclass to a command as options; the command gets them as its argument `options`."""

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        own = [one for one in inspect.signature(function).parameters.values() if one.name != "options"]
        shared = [_parameter(field.name, field.type, field.default) for field in fields(options)]
        names = [one.name for one in own]

        @wraps(function)
        def run(**given: Any) -> T:
            own_values = {name: given.pop(name) for name in names}
            return function(**own_values, options=options(**given))

        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + shared
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    empty = inspect.Parameter.empty
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=empty if default is MISSING else default, annotation=annotation)


def tag_of(text: str) -> tuple[str, str]:
    """Return name and value of a tag as an option has it.

    Raises:
        InvalidSetting: it has another form.
    """
    name, equals, value = text.partition("=")
    if not name or not equals or not value or not can_be_stored(text):
        raise InvalidSetting("--tag: has the form NAME=VALUE")
    return name, value


def with_database(work: Callable[[Database], Coroutine[Any, Any, T]]) -> T:
    """Run something that needs the database and nothing else."""

    async def run() -> T:
        database = await Database(wiring().database_url).open()
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


def wiring() -> Wiring:
    """Return the wiring of the environment."""
    return Wiring.from_environment()


def print_json(value: Any) -> None:
    """Print one JSON object on one line of stdout: in UTF-8, whatever the terminal has."""
    if isinstance(value, BaseModel):
        text = value.model_dump_json()
    else:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_as_text)
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "replace") + b"\n")
    sys.stdout.buffer.flush()


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table for people; numbers are aligned to the right."""
    shown_table = Table(title=translated(title), title_justify="left")
    for index, column in enumerate(map(translated, columns)):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        shown_table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        shown_table.add_row(*[_plain(shown(_cell(value))) for value in row])
    # In a file or a pipe it is as wide as it needs to be.
    (out if out.is_terminal else Console(width=160)).print(shown_table, soft_wrap=False)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
