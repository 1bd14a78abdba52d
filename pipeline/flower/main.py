"""Start Flower on loopback. Without a password it is read-only; with YYC3_FLOWER_BASIC_AUTH=user:password it can control."""

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import flower.app
from tornado.options import options

from pipeline.concurrency.cancellation import cancel_and_wait
from pipeline.flower.chunks import CHUNK_COLUMNS, install
from pipeline.store.processes import Role
from pipeline.wiring import Wiring


def run_flower(wiring: Wiring, *, port: int, address: str = "127.0.0.1", descriptor: int | None = None) -> None:
    """Serve until stopped, at a port, or at a descriptor that listens already."""
    install()
    if descriptor is not None:
        listening = socket.socket(fileno=descriptor)
        listening.setblocking(False)
        flower.app.bind_sockets = lambda *_, **__: [listening]
    app = wiring.celery_app()
    columns = ",".join(["state", *CHUNK_COLUMNS, "received", "runtime", "worker", "uuid"])
    secret = wiring.settings.flower_basic_auth
    # The empty file: a flowerconfig.py of the current folder would be run.
    arguments = ["--conf=/dev/null", f"--port={port}", f"--address={address}", f"--tasks_columns={columns}"]
    arguments += ["--enable_events=true", "--max_tasks=20000", "--logging=warning"]
    if secret is not None:
        # Not an argument: those can be read by every account, and are cut at commas.
        options.basic_auth = [secret.get_secret_value()]
    else:
        arguments.append("--read_only=true")
    sys.argv = ["yyc3 flower"]  # Flower prints it
    with _reporting(wiring):
        app.start(argv=["--quiet", "flower", *arguments])


@contextmanager
def _reporting(wiring: Wiring) -> Iterator[None]:
    """Report this process from a thread of its own: Flower has the main thread and a loop of its own."""
    loop, end = asyncio.new_event_loop(), asyncio.Event()

    async def report() -> None:
        async with wiring.adapters() as adapters:
            reporting = asyncio.create_task(adapters.presence(Role.FLOWER).report_forever())
            await end.wait()
            await cancel_and_wait(reporting)

    thread = threading.Thread(target=lambda: loop.run_until_complete(report()), name="presence", daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(timeout=5)
