"""Shared by the benchmarks: the pipeline on this machine with fast simulators, CPU times, a table and a JSON line."""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from pipeline.local.readiness import wait_until
from pipeline.settings import Settings
from pipeline.stack import Stack

_err = Console(stderr=True)
_SATURATED = 0.03


@contextmanager
def fast_pipeline(
    *, speed: float = 1_000.0, simulator_arguments: tuple[str, ...] = (), models_file: Path | None = None
) -> Iterator[Stack]:
    """Run the stack in a new home, with simulators `speed` times faster than life."""
    with tempfile.TemporaryDirectory(prefix="yyc3-bench-") as folder:
        settings = Settings(
            _env_file=None, home=Path(folder), database_url=None, redis_url=None, models_file=models_file
        )
        os.environ["YYC3_HOME"] = folder
        for name in ("DATABASE_URL", "REDIS_URL", "AI_BASE_URL", "AI_MODEL"):
            os.environ.pop(name, None)
        with Stack(
            settings,
            simulate=True,
            speed=speed,
            simulator_arguments=simulator_arguments,
            flower=False,
            on_step=lambda text: _err.print(text, style="dim"),
        ) as stack:
            yield stack


def batch_line(custom_id: str, content: str, **body: Any) -> dict[str, Any]:
    """Return a line of a batch file in OpenAI's form."""
    messages = [{"role": "user", "content": content}]
    body = {"model": "chatglm3-6b", "messages": messages, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    """Wait for a condition; a process that never gets there ends the benchmark with a sentence."""
    if not wait_until(condition, seconds):
        raise SystemExit(f"waited {seconds:.0f} s for {what}")


def processes_of(stack: Stack, part: str) -> list[psutil.Process]:
    """Find the processes of this stack whose arguments contain `part`, with their children."""
    found = []
    for process in psutil.process_iter():
        try:
            if part in " ".join(process.cmdline()) and process.environ().get("YYC3_HOME") == str(stack.folder):
                found += [process, *process.children(recursive=True)]
        except psutil.Error:
            continue  # it ended, or is not ours
    return found


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Return user and system time so far."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


class Idle:
    """The share of the machine that was idle, 0 to 1."""

    def __init__(self) -> None:
        psutil.cpu_times_percent(interval=None)

    def share(self) -> float:
        """Return the share since the start."""
        return round(float(psutil.cpu_times_percent(interval=None).idle) / 100, 3)


def percentile(values: list[float], share: float) -> float:
    """Return the value below which this share of all lies."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * share))]


def show(title: str, numbers: dict[str, Any]) -> None:
    """Print a table; with `--json` also one object as the last line of stdout."""
    if any(name.endswith("idle_share") and value < _SATURATED for name, value in numbers.items()):
        numbers = {**numbers, "saturated": "yes: the machine had no idle time, do not trust ratios"}
    setting = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.machine()}"
    table = Table(title=f"{title} ({setting})", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in numbers.items():
        table.add_row(
            name,
            f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value),
        )
    Console(stderr="--json" in sys.argv).print(table)
    if "--json" in sys.argv:
        print(json.dumps(numbers))


__all__ = ["Idle", "cpu_seconds", "fast_pipeline", "percentile", "processes_of", "show"]
