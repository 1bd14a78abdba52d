"""What every command shares: one sentence for errors, exit codes, JSON or a table."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from pipeline.wiring import Wiring
from schemas.errors import BrokerError, ConfigurationError, PipelineError, StoreError, SubmissionError

P = ParamSpec("P")
T = TypeVar("T")
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    SOME_FAILED = 1
    BAD_INPUT = 2
    UNREACHABLE = 3  # or it takes nothing more for now


def _exit_for(error: PipelineError) -> Exit:
    if isinstance(error, SubmissionError | ConfigurationError) and not error.retryable:
        return Exit.BAD_INPUT
    busy = isinstance(error, BrokerError | StoreError | SubmissionError) and error.retryable
    return Exit.UNREACHABLE if busy else Exit.SOME_FAILED


@contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except PipelineError as error:
        err.print(f"[red]error[/red] {_plain(error.message)}", highlight=False)
        raise typer.Exit(_exit_for(error)) from None
    except KeyboardInterrupt:
        err.print("stopped; jobs that were submitted go on")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone: nothing to say to anybody
        raise typer.Exit(Exit.DONE) from None


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def command(function: Callable[P, T]) -> Callable[P, T]:
    """Wrap a command: our errors become one sentence and an exit code."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with _one_sentence():
            return function(*args, **kwargs)

    return wrapped


def wiring() -> Wiring:
    """Adapters as the environment says."""
    return Wiring.from_environment()


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout."""
    if isinstance(value, BaseModel):
        sys.stdout.write(value.model_dump_json() + "\n")
    else:
        sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table for people; numbers to the right."""
    shown = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        shown.add_row(
            *[
                _plain(f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell))
                for cell in row
            ]
        )
    # Into a file or a pipe: as wide as it wants to be.
    (out if out.is_terminal else Console(width=160)).print(shown, soft_wrap=False)


__all__ = ["Exit", "command", "err", "out", "print_json", "table", "wiring"]
