"""Help and refusals of the command line in the language of the terminal."""

from typing import Any

import typer
from typer import rich_utils
from typer.core import TyperGroup

from pipeline.cli.language import translated

UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""Whichever click it is that Typer uses: its own copy, or the package."""

_TITLES = (
    "OPTIONS_PANEL_TITLE",
    "COMMANDS_PANEL_TITLE",
    "ARGUMENTS_PANEL_TITLE",
    "ERRORS_PANEL_TITLE",
    "DEFAULT_STRING",
    "REQUIRED_LONG_STRING",
    "RICH_HELP",
)


def translate_help(command: Any) -> None:
    """Translate the help of a command and of those below it."""
    for name in _TITLES:
        setattr(rich_utils, name, translated(getattr(rich_utils, name)))
    _translate(command)


def _translate(command: Any) -> None:
    command.help = _sentence(command.help)
    command.short_help = _sentence(command.short_help)
    for parameter in command.params:
        parameter.help = _sentence(getattr(parameter, "help", None))
    if (own := command.get_help_option(typer.Context(command))) is not None:
        own.help = _sentence(own.help)
    if isinstance(command, TyperGroup):
        for inner in command.commands.values():
            _translate(inner)


def _sentence(text: str | None) -> str | None:
    return None if text is None else translated(" ".join(text.split()))


def show_refusal(error: Any) -> None:
    """Print why arguments are refused."""
    if not error.format_message():  # no arguments at all: that is its help
        error.show()
    else:
        rich_utils.rich_format_error(UsageError(translated(error.format_message()), error.ctx))
