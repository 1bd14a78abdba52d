"""What every command shares: options from a dataclass, exit codes, one sentence for an error."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner, Result

from pipeline.cli import console
from pipeline.cli.console import command, shown, with_options
from pipeline.cli.exit_codes import Exit
from schemas.errors import (
    EngineFailed,
    InvalidJob,
    InvalidSetting,
    PipelineError,
    QueueSaturated,
    StoreUnavailable,
)


@dataclass(frozen=True)
class SharedOptions:
    """Options of several commands."""

    size: Annotated[int, typer.Option(help="How large.")] = 3
    name: Annotated[str | None, typer.Option("--called", help="Its name.")] = None
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False


@dataclass(frozen=True)
class MoreOptions(SharedOptions):
    """Options of a few commands."""

    place: Annotated[str, typer.Option(help="Where.")] = "here"


@dataclass(frozen=True)
class RequiredOptions:
    """An option without a default."""

    count: Annotated[int, typer.Option(help="How many.")]
    labels: Annotated[str, typer.Option()] = field(default="none")


def runs(options: type[Any]) -> tuple[typer.Typer, list[tuple[str, bool, Any]]]:
    """Return a command with options of its own and those of a dataclass, and the calls that reach it."""
    app, calls = typer.Typer(add_completion=False), []

    @app.command()
    @command
    @with_options(options)
    def run(
        text: Annotated[str, typer.Argument(help="What.")],
        loud: Annotated[bool, typer.Option("--loud")] = False,
        *,
        options: Any,
    ) -> None:
        """Do something."""
        calls.append((text, loud, options))

    return app, calls


def invoke(app: typer.Typer, *arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})


def test_the_fields_of_a_dataclass_become_options_with_their_defaults() -> None:
    app, calls = runs(SharedOptions)
    assert invoke(app, "a").exit_code == 0
    assert invoke(app, "b", "--size", "7", "--called", "x", "--all", "--loud").exit_code == 0
    assert calls == [
        ("a", False, SharedOptions(size=3, name=None, every=False)),
        ("b", True, SharedOptions(size=7, name="x", every=True)),
    ]


def test_inherited_fields_are_options_too() -> None:
    app, calls = runs(MoreOptions)
    assert invoke(app, "a", "--place", "there", "--size", "1").exit_code == 0
    assert calls == [("a", False, MoreOptions(size=1, place="there"))]


def test_options_of_the_command_come_before_shared_ones_in_its_help() -> None:
    app, _ = runs(SharedOptions)
    shown = invoke(app, "--help").output
    positions = [shown.index(name) for name in ("--loud", "--size", "--called", "--all")]
    assert positions == sorted(positions)
    assert "How large." in shown
    assert "[default: 3]" in shown
    assert "Do something." in shown
    assert "--options" not in shown


def test_a_field_without_a_default_is_a_required_option() -> None:
    app, calls = runs(RequiredOptions)
    refused = invoke(app, "a")
    assert refused.exit_code == 2
    assert "--count" in refused.output
    assert invoke(app, "a", "--count", "2").exit_code == 0
    assert calls == [("a", False, RequiredOptions(count=2, labels="none"))]


def test_a_value_of_another_type_is_refused_by_its_option() -> None:
    app, calls = runs(SharedOptions)
    refused = invoke(app, "a", "--size", "many")
    assert refused.exit_code == 2
    assert "--size" in refused.output
    assert calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidJob("job refused: text: [empty]"), Exit.BAD_INPUT),
        (InvalidSetting("DATABASE_URL is missing"), Exit.BAD_INPUT),
        (StoreUnavailable("the database cannot be reached"), Exit.UNREACHABLE),
        (QueueSaturated("the queue is full"), Exit.UNREACHABLE),
        (EngineFailed("the engine failed"), Exit.SOME_FAILED),
    ],
)
def test_an_error_of_ours_is_one_sentence_and_an_exit_code(error: PipelineError, code: Exit) -> None:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    @command
    def fail() -> None:
        raise error

    done = invoke(app)
    assert done.exit_code == code
    assert isinstance(done.exception, SystemExit)


def test_an_error_is_printed_as_its_sentence_alone(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def fail() -> None:
        raise InvalidJob("job refused: text: [empty]")

    with pytest.raises(typer.Exit):
        fail()
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "error job refused: text: [empty]\n")


@pytest.mark.parametrize("sent", ["\x1b]52;c;aGk=\x07", "\x9b2J", "a\rb", "\x1b[8mhidden", "\x00"])
def test_an_answer_steers_no_terminal_and_is_whole_elsewhere(monkeypatch: pytest.MonkeyPatch, sent: str) -> None:
    monkeypatch.setattr(console.out, "_force_terminal", True)
    assert not [character for character in shown(sent) if not character.isprintable()]
    assert shown("你好\n\t好") == "你好\n\t好"
    monkeypatch.setattr(console.out, "_force_terminal", False)
    assert shown(sent) == sent
