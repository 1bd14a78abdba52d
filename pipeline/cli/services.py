"""Commands that run one part each: worker, intake, recover, flower, simulator, db.

Flower, Alembic and the simulator are imported when they run: together they take longer than most commands.
"""

import asyncio
import os
import signal
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.cli.console import AsJson, command, print_json, say, table, tell, wiring, with_database
from pipeline.concurrency.cancellation import cancel_and_wait
from pipeline.policies.leases import scan_interval
from pipeline.store import Database
from pipeline.store.processes import Role
from schemas.doorbells import Lane
from schemas.errors import InvalidSetting

_NOT_SHOWN = {"unknown_models", "more_expired"}
db = typer.Typer(help="The tables of the database.", no_args_is_help=True)


def _need_packages_of_workers() -> None:
    """Fail here, where the edge says it in one sentence, and not in the process that takes the place of this one."""
    import httpx_aiohttp  # noqa: F401


@command
def worker(
    lane: Annotated[Lane, typer.Option(help="Which queues: interactive or bulk.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Entry of models.toml to serve; repeat it. Default: all.")
    ] = None,
) -> None:
    """Run a worker process for one lane. SIGTERM drains it: requests in flight end, the rest is requeued."""
    _need_packages_of_workers()
    # The worker replaces this process, so that signals reach it and nothing else.
    arguments = [sys.executable, "-P", "-m", "workers.main", lane, *(model or ())]
    os.execv(arguments[0], arguments)  # noqa: S606 - our own interpreter


@command
def intake() -> None:
    """Run the intake process: jobs that arrive as Celery messages, and their replies. See docs/submitting.md."""
    _need_packages_of_workers()
    arguments = [sys.executable, "-P", "-m", "workers.intake"]
    os.execv(arguments[0], arguments)  # noqa: S606 - our own interpreter


@command
def recover(
    once: Annotated[
        bool, typer.Option("--once", help="Sweep once, or twice if a worker seems lost; then stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: print the result as JSON.")] = False,
) -> None:
    """Requeue the chunks of lost workers and publish doorbells for queued chunks. Several instances may run."""
    if as_json and not once:
        raise InvalidSetting("--json goes with --once: the other form runs on")
    asyncio.run(_recover_once(as_json) if once else _recover_forever())


async def _recover_forever() -> None:
    async with wiring().adapters() as adapters:
        sweeping = asyncio.create_task(adapters.recovery().sweep_forever())
        reporting = asyncio.create_task(adapters.presence(Role.RECOVERY).report_forever())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, sweeping.cancel)
        await asyncio.wait({sweeping})
        await cancel_and_wait(reporting)
        if not sweeping.cancelled():
            sweeping.result()


async def _recover_once(as_json: bool) -> None:
    async with wiring().adapters() as adapters:
        recovery = adapters.recovery()
        done = await recovery.sweep()
        if recovery.suspected_runs:
            tell(f"{recovery.suspected_runs} leases have expired; looking a second time whether they are renewed")
            await asyncio.sleep(scan_interval(adapters.settings.lease).total_seconds())
            done += await recovery.sweep()
    if as_json:
        print_json({name: value for name, value in asdict(done).items() if name not in _NOT_SHOWN})
    else:
        say(
            f"{done.requeued_chunks} chunks requeued, {done.poison_jobs} jobs failed as poison, "
            f"{done.expired_jobs} expired, {done.doorbells} doorbells published"
        )


@command
def flower(
    port: Annotated[
        int | None, typer.Option(help="Port; default: YYC3_FLOWER_PORT or 5555.", min=1, max=65_535)
    ] = None,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    descriptor: Annotated[int | None, typer.Option("--fd", hidden=True)] = None,
) -> None:
    """Run Flower, read-only unless YYC3_FLOWER_BASIC_AUTH=user:password is set."""
    from pipeline.flower.main import run_flower

    wired = wiring()
    run_flower(wired, port=port or wired.settings.flower_port, address=address, descriptor=descriptor)


@command
def simulator(context: typer.Context) -> None:
    """Run a simulator of vLLM: its HTTP, batching and errors; answers are made of word lists and marked. See --help."""
    from simulator import main as run_simulator

    raise typer.Exit(run_simulator(context.args))


@db.command("size")
@command
def db_size(as_json: AsJson = False) -> None:
    """Print how large each table is, and how fast the database grows."""
    from pipeline.store import sizes

    async def read(database: Database) -> tuple[list[sizes.TableSize], sizes.Growth]:
        return await sizes.table_sizes(database), await sizes.growth(database)

    found, growth = with_database(read)
    if as_json:
        print_json(asdict(growth) | {"tables": [asdict(one) for one in found]})
        return
    rows = [[one.name, f"{one.bytes / 1e6:,.1f}", one.rows, one.partitions] for one in found]
    table("tables", ["table", "MB", "rows", "partitions"], rows)
    say(f"{growth.bytes / 1e9:.2f} GB together; a day like the last one adds {growth.bytes_a_day / 1e9:.2f} GB")


@db.command("upgrade")
@command
def db_upgrade(as_json: Annotated[bool, typer.Option("--json", help="Print the revision as JSON.")] = False) -> None:
    """Upgrade the tables to the newest revision; does nothing if they are up to date."""
    from pipeline.store.schema import migrate

    revision = migrate.upgrade(wiring().database_url)
    if as_json:
        print_json({"revision": revision})
    else:
        say(f"database is at revision {revision}")
