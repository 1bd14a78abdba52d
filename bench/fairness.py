"""Measure how a small batch fares behind a large one of another tenant, and how soon the slots of a paused batch are used.

One simulated engine with 32 slots at its real speed, about 200 rows a second (whole requests of ten tokens each). 500 rows of
tenant b are submitted alone, then again while a batch of tenant a runs that was submitted before (`--rows`, 100,000 unless
given): `ratio` is how much longer it takes from the command to the last outcome. What is in flight when b comes cannot be
taken back: `in_flight_seconds` beside it. Last, two batches of one tenant share the engine and one is paused: seconds until
no row of it runs, and the share of the engine's rows that the other one had in the two seconds from then on.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.setting import batch_line, fast_pipeline, show, wait_for
from pipeline import Client
from schemas.ids import BatchId

ROWS, SMALL_ROWS, SLOTS = 100_000, 500, 32
_WARM_ROWS = 1_000


def lines(count: int, name: str) -> Iterator[dict[str, Any]]:
    """Make rows of ten tokens, each with a question of its own."""
    for number in range(count):
        yield batch_line(f"{name}-{number}", f"{name} {number}", max_tokens=10, temperature=1)


def run_small(client: Client, name: str) -> float:
    """Return the seconds from the submit of a small batch to its last outcome."""
    started = time.perf_counter()
    batch = client.batches.create(lines(SMALL_ROWS, name), tenant="b", key=name)
    *_, last = client.batches.watch(batch.batch_id)
    assert last.succeeded == SMALL_ROWS
    return time.perf_counter() - started


def _wait_until_warm(client: Client, batch_id: BatchId) -> None:
    wait_for(lambda: client.batches.get(batch_id).settled >= _WARM_ROWS, "a batch to run evenly")


def rate(client: Client, batch_id: BatchId, seconds: float) -> float:
    """Return the rows a second of a batch."""
    before, started = client.batches.get(batch_id).settled, time.perf_counter()
    time.sleep(seconds)
    return (client.batches.get(batch_id).settled - before) / (time.perf_counter() - started)


def measure(client: Client, rows: int) -> dict[str, float]:
    """Run alone, behind, and paused."""
    run_small(client, "warm")
    alone = run_small(client, "alone")
    large = client.batches.create(lines(rows, "large"), tenant="a", key="large")
    _wait_until_warm(client, large.batch_id)
    alone_rate = rate(client, large.batch_id, 5.0)
    behind = run_small(client, "behind")
    other = client.batches.create(lines(20_000, "other"), tenant="a", key="other")
    _wait_until_warm(client, other.batch_id)
    paused = client.batches.pause(large.batch_id)
    started = time.perf_counter()
    assert paused.paused_at is not None
    wait_for(lambda: client.batches.get(large.batch_id).running == 0, "the paused batch to stop", 60)
    stopped = time.perf_counter() - started
    after = rate(client, other.batch_id, 2.0)
    for batch in (large, other):
        client.batches.cancel(batch.batch_id)
    return {
        "alone_seconds": alone,
        "behind_seconds": behind,
        "ratio": behind / alone,
        "rows_per_second": alone_rate,
        "in_flight_seconds": SLOTS / alone_rate,
        "paused_stops_seconds": stopped,
        "share_of_the_other_after": after / alone_rate,
    }


def main() -> None:
    """Run on a stack of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--json", action="store_true")
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="yyc3-bench-") as folder:
        models = Path(folder) / "models.toml"
        models.write_text(
            f'[models.chatglm3-6b]\nkinds = ["chat", "intent", "sentiment", "completion"]\nport = 1\nmax_num_seqs = {SLOTS}\n'
        )
        with (
            fast_pipeline(speed=1.0, simulator_arguments=("--max-num-seqs", str(SLOTS)), models_file=models),
            Client() as client,
        ):
            numbers = measure(client, rows)
    show("fairness", {**numbers, "rows": rows})
    print(json.dumps(numbers), file=sys.stderr)


if __name__ == "__main__":
    main()
