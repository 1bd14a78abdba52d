"""`yyc3 health`: check every part, with advice."""

import asyncio
import socket
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.console import command, out, print_json, say, wiring, with_database
from pipeline.cli.exit_codes import Exit
from pipeline.store import processes

if TYPE_CHECKING:
    from pipeline.operations.health import Finding


@command
def health(
    here: Annotated[
        bool, typer.Option("--here", help="Only whether a worker, intake, recovery or Flower of this host is heard of.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each part.")] = False,
) -> None:
    """Check Redis, Postgres, the broker, each endpoint with one small completion, and the workers."""
    if here:
        _check_this_host(as_json)
        return
    from pipeline.operations import health as checks

    async def check() -> bool:
        well = True
        wired = wiring()
        home = wired.settings.home_folder if wired.running else None
        async with wired.adapters() as a:
            async for finding in checks.check(a.database, a.publisher, a.notifier, a.engine, a.models, home):
                _print(finding, as_json=as_json)
                well = well and finding.ok
        return well

    if not asyncio.run(check()):
        raise typer.Exit(Exit.UNREACHABLE)


def _check_this_host(as_json: bool) -> None:
    """For a container: its only process reports itself every five seconds."""
    host = socket.gethostname()
    own = [one for one in with_database(processes.seen) if one.heartbeat.name.partition("@")[2] == host]
    living = [one.heartbeat.name for one in own if not one.silent]
    if as_json:
        print_json({"host": host, "processes": living})
    else:
        say(", ".join(living) or "no process of this host is heard of")
    if not living:
        raise typer.Exit(Exit.UNREACHABLE)


def _print(finding: "Finding", *, as_json: bool) -> None:
    if as_json:
        print_json(finding.as_json())
        return
    latency = f" ({finding.latency_ms:.1f} ms)" if finding.latency_ms is not None else ""
    out.print("[green]ok  [/green]" if finding.ok else "[red]FAIL[/red]", end=" ")
    say(f"{finding.part}: {finding.seen}{latency}")
    if finding.advice:
        say(f"     → {finding.advice}")
