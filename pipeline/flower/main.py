"""Start Flower on loopback. Without a password it is read-only; with YYC3_FLOWER_BASIC_AUTH=user:password it can control."""

import os
import sys

from pipeline.flower.chunks import CHUNK_COLUMNS, install
from pipeline.wiring import Wiring


def run_flower(wiring: Wiring, *, port: int, address: str = "127.0.0.1") -> None:
    """Serve until stopped."""
    install()
    app = wiring.celery_app()
    columns = ",".join(["state", *CHUNK_COLUMNS, "received", "runtime", "worker", "uuid"])
    secret = wiring.settings.flower_basic_auth
    arguments = [f"--port={port}", f"--address={address}", f"--tasks_columns={columns}", "--enable_events=true"]
    arguments += ["--max_tasks=20000", "--logging=warning"]
    if secret is not None:
        os.environ["FLOWER_BASIC_AUTH"] = (
            secret.get_secret_value()
        )  # not an argument: those can be read by every account
    else:
        arguments.append("--read_only=true")
    sys.argv = ["yyc3 flower"]  # Flower prints it
    app.start(argv=["--quiet", "flower", *arguments])
