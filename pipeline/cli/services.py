"""Commands that run one part each: worker, intake, recover, flower, simulator, db.

Flower, Alembic and the simulator are imported where they run: together they take longer than most commands.
"""

import asyncio
import os
import signal
import sys
from typing import Annotated

import typer

from pipeline.cli.console import command, err, out, print_json, wiring
from pipeline.operations.recovery import Reach, Recovery
from pipeline.policies.leases import scan
from schemas.doorbells import Lane

db = typer.Typer(help="The database's tables.", no_args_is_help=True)


@command
def worker(
    lane: Annotated[Lane, typer.Option(help="Which queues: those where somebody waits, or bulk.")],
    model: Annotated[list[str] | None, typer.Option(help="Models to serve; all of models.toml if left out.")] = None,
) -> None:
    """Run a worker process for one lane. SIGTERM drains it: what is in flight ends, the rest goes back."""
    # The worker replaces this process, so that signals reach it and nothing else.
    arguments = [sys.executable, "-m", "workers.main", lane, *(model or ())]
    os.execv(arguments[0], arguments)  # noqa: S606 - our own interpreter


@command
def intake() -> None:
    """Run the intake process: jobs that come as Celery messages, and their replies. See docs/submitting.md."""
    arguments = [sys.executable, "-m", "workers.intake"]
    os.execv(arguments[0], arguments)  # noqa: S606 - our own interpreter


@command
def recover(
    once: Annotated[
        bool, typer.Option("--once", help="One sweep, or two where a worker seems lost; then stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: print what was done as JSON.")] = False,
) -> None:
    """Give back chunks of lost workers and ring for what is queued. Any number may run."""

    async def run() -> None:
        here = wiring()
        async with here.adapters() as adapters:
            reach = Reach(adapters.database, adapters.bells, adapters.whispers, adapters.stream_writer)
            recovery = Recovery(reach, adapters.models, here.settings.lease)
            if not once:
                sweeping = asyncio.create_task(recovery.sweep_forever())
                for number in (signal.SIGTERM, signal.SIGINT):
                    asyncio.get_running_loop().add_signal_handler(number, sweeping.cancel)
                await asyncio.wait({sweeping})
                if not sweeping.cancelled():
                    sweeping.result()
                return
            done = await recovery.sweep()
            if recovery.suspects:
                err.print(f"{recovery.suspects} runs outlived their lease; looking a second time whether they are lost")
                await asyncio.sleep(scan(here.settings.lease).total_seconds())
                done += await recovery.sweep()
            if as_json:
                print_json(
                    {
                        "returned_chunks": done.returned_chunks,
                        "poison_jobs": done.poison_jobs,
                        "expired_jobs": done.expired_jobs,
                        "permits": done.permits,
                    }
                )
            else:
                out.print(
                    f"{done.returned_chunks} chunks returned, {done.poison_jobs} jobs given up, {done.expired_jobs} expired, "
                    f"{done.permits} permits rung"
                )

    asyncio.run(run())


@command
def flower(
    port: Annotated[int | None, typer.Option(help="Port; YYC3_FLOWER_PORT or 5555 if left out.")] = None,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Run Flower. It only shows unless YYC3_FLOWER_BASIC_AUTH=user:password is set."""
    from pipeline.flower.main import run_flower

    here = wiring()
    run_flower(here, port=port or here.settings.flower_port, address=address)


@command
def simulator(context: typer.Context) -> None:
    """Stand in for a vLLM: its HTTP, its batching, its errors; answers come from word lists, and it says so. See --help."""
    from simulator import main as run_simulator

    raise typer.Exit(run_simulator(context.args))


@db.command("upgrade")
@command
def db_upgrade(as_json: Annotated[bool, typer.Option("--json", help="Print the revision as JSON.")] = False) -> None:
    """Bring the tables to the newest form; does nothing where they are."""
    from pipeline.store.schema import migrate

    revision = migrate.upgrade(wiring().database_url)
    print_json({"revision": revision}) if as_json else out.print(f"database is at revision {revision}")


__all__ = ["db", "flower", "intake", "recover", "simulator", "worker"]
