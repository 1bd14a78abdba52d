"""Measure how batch files grow: 10,000, 100,000 and 1,000,000 rows of 400 bytes from one file, and 100,000 of 1.5 kB.

Embedded servers, a simulator 1,000 times faster than life; rows in OpenAI's form with `--usage-mode approximate`, each with
a question of its own, answered with one token. Each file is submitted by `yyc3 batches submit` with `--not-before`, so that
nothing runs meanwhile (rows a second, bytes of log a row, peak memory of that process). Then it may run (jobs a second, CPU
time of the submitter and the bulk worker a job, memory of the worker), and `yyc3 batches output` writes it. Last, a file of
the middle size is submitted to run at once: seconds from the command to the first outcome. `--rows N,N` has other sizes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from bench.setting import batch_line, cpu_seconds, fast_pipeline, processes_of, show, wait_for
from pipeline.stack import Stack
from pipeline.store.connecting import parse_url

SIZES = (10_000, 100_000, 1_000_000)
ROW_BYTES, LARGE_ROW_BYTES, LARGE_ROWS = 400, 1_500, 100_000
_ACTIVE_SECONDS = 3_600


def write_file(folder: Path, rows: int, row_bytes: int) -> Path:
    """Write a file of rows of about this size."""
    file = folder / f"{rows}-{row_bytes}.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for number in range(rows):
            line = batch_line(f"request-{number}", f"{number} ", max_tokens=1, temperature=0)
            short = row_bytes - len(json.dumps(line)) - 1
            line["body"]["messages"][0]["content"] += "x" * max(0, short)
            out.write(json.dumps(line) + "\n")
    return file


def command(*arguments: str) -> tuple[str, float, float, float]:
    """Run a command of ours; returns its output, its seconds, its CPU seconds and its peak memory in megabytes."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", *arguments], stdout=output, stderr=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, arguments
        output.seek(0)
        text = output.read().decode()
    return text, time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def connect(stack: Stack) -> psycopg.Connection[Any]:
    """Connect to the database of the stack."""
    address = parse_url(stack.addresses.database_url)
    return psycopg.connect(address.url, autocommit=True, **address.arguments())


def one(connection: psycopg.Connection[Any], statement: str, *arguments: Any) -> Any:
    """Return the one value of a statement."""
    row = connection.execute(statement, arguments).fetchone()
    assert row is not None
    return row[0]


def measure(stack: Stack, file: Path, rows: int) -> dict[str, float]:
    """Submit a file, let it run, read its output."""
    with connect(stack) as connection:
        log = one(connection, "SELECT pg_current_wal_insert_lsn()")
        size = one(connection, "SELECT pg_database_size(current_database())")
        later = ["--not-before", "2100-01-01T00:00:00Z", "--usage-mode", "approximate", "--no-cache", "--json"]
        text, seconds, producer, peak = command("batches", "submit", str(file), "--key", f"{file.name}", *later)
        batch = json.loads(text)
        assert batch["jobs"] == rows
        stored = one(connection, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", log)
        workers = processes_of(stack, "workers.main bulk")
        before, started = cpu_seconds(workers), time.perf_counter()
        connection.execute("UPDATE batches SET not_before = NULL WHERE batch_id = %s", (batch["batch_id"],))
        settled = "SELECT sum(succeeded) FROM chunks WHERE batch_id = %s"
        wait_for(lambda: one(connection, settled, batch["batch_id"]) == rows, "the batch", _ACTIVE_SECONDS)
        ran = time.perf_counter() - started
        used = cpu_seconds(workers) - before
        worker_peak = max(process.memory_info().rss for process in workers) / 1024**2
        whole = one(connection, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", log)
        grown = one(connection, "SELECT pg_database_size(current_database())") - size
    target = file.with_suffix(".out")
    _, output_seconds, _, output_peak = command("batches", "output", str(batch["batch_id"]), "--out", str(target))
    with target.open("rb") as output:
        assert sum(1 for _ in output) == rows
    target.unlink()
    return {
        "submit_rows_per_second": rows / seconds,
        "submit_peak_mb": peak,
        "submit_wal_bytes_a_row": float(stored) / rows,
        "jobs_per_second": rows / ran,
        "us_per_job": (producer + used) / rows * 1e6,
        "worker_mb": worker_peak,
        "wal_bytes_a_row": float(whole) / rows,
        "bytes_a_row": grown / rows,
        "output_rows_per_second": rows / output_seconds,
        "output_peak_mb": output_peak,
    }


def first_result(stack: Stack, file: Path) -> float:
    """Return the seconds from the command to the first outcome."""
    with connect(stack) as connection:
        before = one(connection, "SELECT coalesce(max(job_id), 0) FROM jobs")
        started = time.perf_counter()
        submit = [
            sys.executable,
            "-m",
            "pipeline.cli",
            "batches",
            "submit",
            str(file),
            "--key",
            "at once",
            "--no-cache",
        ]
        process = subprocess.Popen(submit, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: bool(one(connection, "SELECT count(*) FROM outcomes WHERE job_id > %s", before)), "a result")
        seconds = time.perf_counter() - started
        process.wait()
        batch = one(connection, "SELECT max(batch_id) FROM batches")
    command("batches", "cancel", str(batch))
    return seconds


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(map(str, SIZES)))
    parser.add_argument("--json", action="store_true")
    sizes = [int(size) for size in parser.parse_args().rows.split(",")]
    numbers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="yyc3-bench-") as folder, fast_pipeline() as stack:
        for rows, row_bytes in [*((size, ROW_BYTES) for size in sizes), (min(LARGE_ROWS, max(sizes)), LARGE_ROW_BYTES)]:
            file = write_file(Path(folder), rows, row_bytes)
            name = f"{rows:,} x {row_bytes}"
            numbers |= {f"{name}: {key}": value for key, value in measure(stack, file, rows).items()}
            print(name, "done", file=sys.stderr)
        numbers["first_result_seconds"] = first_result(
            stack, write_file(Path(folder), sorted(sizes)[len(sizes) // 2], 400)
        )
    show("batch files", numbers)


if __name__ == "__main__":
    main()
