"""The commands by name."""

from importlib import metadata
from typing import Annotated

import typer
from typer.main import get_command

from pipeline.cli import dead_letters, services
from pipeline.cli.batches import batches
from pipeline.cli.calls import calls
from pipeline.cli.console import say_as_is
from pipeline.cli.demo import demo
from pipeline.cli.exit_codes import Exit
from pipeline.cli.health import health
from pipeline.cli.help import UsageError, show_refusal, translate_help
from pipeline.cli.info import info
from pipeline.cli.jobs import jobs
from pipeline.cli.language import is_chinese
from pipeline.cli.queues import queues
from pipeline.cli.schema import schema
from pipeline.cli.submit import submit
from pipeline.cli.up import up
from pipeline.cli.usage import usage
from pipeline.observability.logging import configure_logging

app = typer.Typer(
    name="yyc3",
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(up)
app.command()(demo)
app.add_typer(submit, name="submit")
app.add_typer(jobs, name="jobs")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(calls, name="calls")
app.add_typer(batches, name="batches")
app.command()(queues)
app.command()(health)
app.command()(usage)
app.command()(info)
app.command()(schema)
app.command()(services.worker)
app.command()(services.intake)
app.command()(services.recover)
app.command()(services.flower)
app.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(
    services.simulator
)
app.add_typer(services.db, name="db")


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[  # noqa: ARG001 - the edge takes it
        bool, typer.Option("--debug", help="Print the whole traceback of an error that is a bug.")
    ] = False,
) -> None:
    """The YYC3 AI-Call pipeline: call-centre jobs to vLLM and back, each exactly once."""
    if version:
        say_as_is(f"yyc3 {metadata.version('yyc3-ai-call')}")
        raise typer.Exit


def run_command() -> int:
    """Run the command of the arguments; returns its exit code."""
    configure_logging()  # to stderr: results go to stdout
    command = get_command(app)
    if is_chinese():
        translate_help(command)
    try:
        code = command.main(prog_name="yyc3", standalone_mode=False)
    except typer.Abort:
        return Exit.STOPPED
    except UsageError as error:
        show_refusal(error)
        return Exit.BAD_INPUT
    return code if isinstance(code, int) else Exit.DONE
