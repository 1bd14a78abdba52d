"""`yyc3 health`: check every part, with advice."""

import asyncio
from typing import Annotated

import typer

from pipeline.cli.console import Exit, command, out, print_json, say, wiring
from pipeline.operations import health as checks
from pipeline.operations.health import Finding


@command
def health(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each part.")] = False,
) -> None:
    """Check Redis, Postgres, the broker, each endpoint with one small completion, and the workers."""

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


def _print(finding: Finding, *, as_json: bool) -> None:
    if as_json:
        print_json(finding.as_json())
        return
    latency = f" ({finding.latency_ms:.1f} ms)" if finding.latency_ms is not None else ""
    out.print("[green]ok  [/green]" if finding.ok else "[red]FAIL[/red]", end=" ")
    say(f"{finding.part}: {finding.seen}{latency}")
    if finding.advice:
        say(f"     → {finding.advice}")
