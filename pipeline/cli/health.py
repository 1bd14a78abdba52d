"""`yyc3 health`: check every part, with advice."""

import asyncio
from typing import Annotated

import typer

from pipeline.cli.console import Exit, command, out, print_json, wiring
from pipeline.operations import health as checks
from pipeline.operations.health import Finding


@command
def health(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each part.")] = False,
) -> None:
    """Check Redis, Postgres, the broker, each endpoint with one small completion, and the workers."""

    async def check() -> list[Finding]:
        async with wiring().adapters() as a:
            return await checks.check(a.database, a.publisher, a.notifier, a.engine, a.models)

    findings = asyncio.run(check())
    for finding in findings:
        if as_json:
            print_json(finding.as_json())
            continue
        mark = "[green]ok  [/green]" if finding.ok else "[red]FAIL[/red]"
        latency = f" ({finding.latency_ms:.1f} ms)" if finding.latency_ms is not None else ""
        out.print(f"{mark} {finding.part}: {finding.seen}{latency}", highlight=False)
        if finding.advice:
            out.print(f"     → {finding.advice}", highlight=False)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(Exit.UNREACHABLE)
