"""The commands by name."""

import typer
from typer.main import get_command

from pipeline.cli import dead_letters, services
from pipeline.cli.calls import calls
from pipeline.cli.demo import demo
from pipeline.cli.health import health
from pipeline.cli.info import info
from pipeline.cli.jobs import jobs
from pipeline.cli.queues import queues
from pipeline.cli.schema import schema
from pipeline.cli.submit import submit
from pipeline.cli.up import up
from pipeline.observability.logging import configure_logging

app = typer.Typer(
    name="yyc3",
    help="The YYC3 AI-Call pipeline: call-centre jobs to vLLM and back, each exactly once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(up)
app.command()(demo)
app.add_typer(submit, name="submit")
app.add_typer(jobs, name="jobs")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(calls, name="calls")
app.command()(queues)
app.command()(health)
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


def run_command() -> int:
    """Run the command of the arguments; returns its exit code."""
    configure_logging()  # to stderr: results go to stdout
    command = get_command(app)
    try:
        command.main(prog_name="yyc3")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0
    return 0
