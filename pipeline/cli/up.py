"""`yyc3 up`: run everything on this machine until Ctrl-C."""

import os
import select
import signal
import time
from typing import Annotated

import typer

from pipeline.cli.console import Exit, command, err, out, print_json
from pipeline.settings import load_settings
from pipeline.stack import Stack

_CALM_SECONDS = 30.0


@command
def up(
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Run a simulator for each model without a configured endpoint.")
    ] = False,
    speed: Annotated[float, typer.Option(help="Speed of the simulators; 1 is life-like.", min=0.01)] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the addresses as one JSON line.")] = False,
) -> None:
    """Run everything on this machine: Redis, Postgres, workers, intake, recovery, Flower. Ctrl-C stops it all."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    with Stack(
        load_settings(), simulate=simulate, speed=speed, on_step=lambda text: err.print(text, highlight=False)
    ) as stack:
        if as_json:
            print_json(
                {
                    "flower_url": stack.addresses.flower_url,
                    "simulated": stack.addresses.simulated,
                    "home": str(stack.folder),
                }
            )
        else:
            out.print(f"Flower   {stack.addresses.flower_url}", highlight=False)
            out.print(
                f"home     {stack.folder} (logs and data; other yyc3 commands find it by themselves)", highlight=False
            )
            out.print(
                "ready    try: yyc3 submit intent --text '我要退款' --wait      Ctrl-C stops everything",
                highlight=False,
            )
        _watch(stack, wake)


def _watch(stack: Stack, wake: int) -> None:
    """Restart processes that exit by themselves until a signal; one that exits twice within 30 s stays down."""
    ended: dict[str, float] = {}
    while True:
        readable, _, _ = select.select([wake, stack.supervisor.output], [], [])
        if wake in readable:
            return
        found = stack.supervisor.next_exit()
        if found is None:
            err.print("[red]the supervisor is gone; everything has stopped[/red]")
            raise typer.Exit(Exit.UNREACHABLE)
        name, code = found
        if time.monotonic() - ended.get(name, 0) < _CALM_SECONDS and name in ended:
            err.print(
                f"{name} exited again with code {code}; it stays down, see {stack.folder / name}.log", highlight=False
            )
            continue
        ended[name] = time.monotonic()
        if name in {"postgres", "valkey"}:
            err.print(f"{name} exited with code {code}; see {stack.folder / name}.log and start again", highlight=False)
            raise typer.Exit(Exit.UNREACHABLE)
        err.print(f"{name} exited with code {code}; restarted", highlight=False)
        stack.restart(name)
