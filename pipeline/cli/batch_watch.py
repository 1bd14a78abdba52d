"""How a batch is shown: as a row, in full, and while it runs."""

import asyncio
import time
from collections import deque

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from pipeline.cli.console import err, say, tell
from pipeline.cli.language import translated
from pipeline.cli.times import lasting, when
from pipeline.concurrency.backoff import retry_while_unavailable
from pipeline.store import Database, batch_life
from schemas.batches import BatchView
from schemas.ids import BatchId

_LOOK_SECONDS = 0.5
_CODES_SECONDS = 5.0
_RATE_SECONDS = 10.0
_LINE_SECONDS = 15.0


def row_of(found: BatchView) -> list[object]:
    """Return a batch as a row of a table."""
    status = "paused" if found.paused_at and not found.status.is_final else found.status
    return [
        str(found.batch_id),
        found.name,
        found.tenant,
        status,
        found.jobs,
        found.succeeded,
        found.failed + found.refused,
        found.open,
        when(found.created_at),
    ]


def print_batch(found: BatchView, failures: dict[str, int] | None = None, *, on_stderr: bool = False) -> None:
    """Print everything known about a batch; on stderr alone if answers are on stdout."""
    show = tell if on_stderr else say
    show(f"batch {found.batch_id} ({found.name}): {found.status}; {_counts(found)}")
    codes = ", ".join(f"{rows:,} {code}" for code, rows in (failures or {}).items())
    facts = [
        ("failed by code", codes),
        ("paused", found.paused_at and f"{when(found.paused_at)}, {found.paused_by}: {found.pause_reason}"),
        ("canary", found.canary),
        ("waits for its file", found.input_waits_since and when(found.input_waits_since)),
        ("waits", found.last_code and not found.status.is_final and f"{found.last_code}: {found.last_code.meaning}"),
        ("tenant", found.tenant),
        ("key", found.idempotency_key),
        ("submitted", when(found.created_at)),
        ("begun", found.in_progress_at and when(found.in_progress_at)),
        ("ended", found.finished_at and when(found.finished_at)),
        ("expires", found.expires_at and when(found.expires_at)),
        ("tokens", f"{found.prompt_tokens:,} + {found.completion_tokens:,}"),
    ]
    for name, value in facts:
        if value:
            tell(f"{translated(name):<18} {value}", style="dim")


def _counts(found: BatchView) -> str:
    counts = [f"{found.jobs:,} jobs", f"{found.succeeded:,} succeeded", f"{found.failed:,} failed"]
    for name in ("cancelled", "expired", "refused", "cached"):
        if value := getattr(found, name):
            counts.append(f"{value:,} {name}")
    return ", ".join(counts)


class _Rates:
    """Rows and tokens a second over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def add(self, found: BatchView) -> tuple[float, float]:
        """Add what is known now; returns rows and tokens a second."""
        now, tokens = time.monotonic(), found.prompt_tokens + found.completion_tokens
        self._seen.append((now, found.settled, tokens))
        while len(self._seen) > 2 and now - self._seen[0][0] > _RATE_SECONDS:
            self._seen.popleft()
        at, rows, before = self._seen[0]
        seconds = now - at
        return (0.0, 0.0) if seconds <= 0 else ((found.settled - rows) / seconds, (tokens - before) / seconds)


def _line(found: BatchView, rows: float, tokens: float, failures: dict[str, int]) -> str:
    parts = [f"{rows:,.0f} rows/s, {tokens:,.0f} tokens/s"]
    if failures:
        parts.append("failed: " + ", ".join(f"{count:,} {code}" for code, count in failures.items()))
    if found.cached:
        parts.append(f"{found.cached:,} cached")
    if found.paused_at is not None:
        parts.append(f"paused since {when(found.paused_at)} by {found.paused_by}: {found.pause_reason}")
    elif found.canary == "running":
        parts.append("only its canary runs")
    elif not found.input_complete:
        parts.append("its file is still read")
    elif found.last_code is not None and not rows:
        parts.append(f"waits: {found.last_code}")
    elif rows:
        parts.append(f"{lasting(found.open / rows)} left")
    return "; ".join(parts)


async def watch_batch(database: Database, batch_id: BatchId, *, quiet: bool) -> BatchView:
    """Show a batch until it has ended: a bar at a terminal, a line now and then elsewhere. Returns how it ended."""
    bar = Progress(
        TextColumn("{task.fields[name]}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=quiet or not err.is_terminal,
    )
    found = await batch_life.view(database, batch_id)
    task = bar.add_task("", total=found.jobs, name=f"batch {batch_id}")
    rates, failures = _Rates(), dict[str, int]()
    codes_at = line_at = -1e9
    with bar:
        while True:
            rows, tokens = rates.add(found)
            now = time.monotonic()
            if found.failed and now - codes_at > _CODES_SECONDS:
                failures = await batch_life.failures_by_code(database, batch_id)
                codes_at = now
            line = _line(found, rows, tokens, failures)
            bar.update(task, completed=found.settled, total=found.jobs, description=line)
            if not quiet and not err.is_terminal and now - line_at > _LINE_SECONDS and not found.status.is_final:
                tell(f"batch {batch_id}: {found.settled:,} of {found.jobs:,} rows; {line}")
                line_at = now
            if found.status.is_final:
                return found
            await asyncio.sleep(_LOOK_SECONDS)
            found = await retry_while_unavailable(
                lambda: batch_life.view(database, batch_id), "waiting for the database", growing=False
            )
