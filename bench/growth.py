"""Measure how the cost of the store's statements grows with what is queued, and with what is done.

One Postgres in a folder of its own. Chunks of one row are made inside Postgres: 1,000, 100,000, then 1,000,000 queued ones
of 50 batches and 3 priorities, then `--rows` rows that are done (10,000,000 unless given: about 10 GB of disk, said before
it starts). At each size the median of 15 is taken of a claim, a settlement, the depths that a producer reads, what health and
queues read, what recovery reads, and a list of jobs. Last, how long it takes until 64, then 256 chunks of 1,024 rows have
expired. Ratios are to the smallest size.
"""

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import psycopg

from bench.setting import show
from pipeline.local.client import SupervisorClient
from pipeline.store import Database, claims, queries, queue_depths, recovery, settlement
from pipeline.store.connecting import parse_url
from pipeline.store.ids import PARTITION_JOBS, JobIds
from pipeline.store.schema import migrate
from pipeline.store.settlement import ChunkState, SettledRow, Settlement
from schemas.doorbells import Lane
from schemas.results import JobState

SIZES = (1_000, 100_000, 1_000_000)
TIMES = 15
BYTES_A_ROW = 1_000
_LEASE = timedelta(minutes=5)
_MAKE_BATCHES = """
INSERT INTO batches (tenant, payload_hash, name, jobs) SELECT 'default', '', 'made', 1 FROM generate_series(1, 50)
"""
_MAKE_QUEUED = """
INSERT INTO chunks (first_job_id, rows, batch_id, tenant, model, lane, priority)
SELECT n, 1, 1 + n %% 50, 'default', 'm', 'bulk', n %% 3 FROM generate_series(%s::bigint, %s::bigint) n
"""
_MAKE_JOBS = """
INSERT INTO jobs (job_id, batch_id, position, kind, tenant, request)
SELECT n, 1 + n %% 50, n, 'intent', 'default', '{"kind":"intent","text":"hi"}' FROM generate_series(%s::bigint, %s::bigint) n
"""
_MAKE_OUTCOMES = """
INSERT INTO outcomes (job_id, replay, tenant, kind, state, answer, model, label)
SELECT n, 0, 'default', 'intent', 'succeeded', '{"kind":"intent","label":"refund"}', 'm', 'refund'
FROM generate_series(%s::bigint, %s::bigint) n
"""
_MAKE_DONE = """
INSERT INTO chunks (first_job_id, rows, batch_id, tenant, model, lane, state, fence, succeeded, started_at, finished_at)
SELECT n, 1000, 1, 'default', 'm', 'bulk', 'done', 1, 1000, now() - interval '1 day', now() - interval '1 day'
FROM generate_series(%s::bigint, %s::bigint, 1000) n
"""
_MAKE_EXPIRING = """
INSERT INTO chunks (first_job_id, rows, tenant, model, lane, deadline)
SELECT n, 1024, 'default', 'other', 'bulk', now() - interval '1 second'
FROM generate_series(%s::bigint, %s::bigint, 1024) n
"""


async def milliseconds(work: Callable[[], Awaitable[Any]]) -> float:
    """Return the median of several calls."""
    found = []
    for _ in range(TIMES):
        started = time.perf_counter()
        await work()
        found.append((time.perf_counter() - started) * 1000)
    return median(found)


async def statements(database: Database) -> dict[str, float]:
    """Measure each statement once they are warm."""
    held: list[claims.Claim] = []

    async def claim() -> None:
        run_id = uuid4()
        held.append((await claims.claim_best(database, "m", Lane.BULK, [run_id], worker="w", lease=_LEASE))[run_id])

    async def settle() -> None:
        one = held.pop()
        rows = [SettledRow(job.job_id, 0, "default", "intent", JobState.SUCCEEDED, b"{}") for job in one.jobs]
        done = await settlement.settle(
            database, [Settlement(one.first_job_id, one.fence, rows, next_state=ChunkState.DONE)]
        )
        assert done.written

    for _ in range(8):  # psycopg prepares a statement that it has seen five times
        await claim()
        await settle()
    return {
        "claim_ms": await milliseconds(claim),
        "settle_ms": await milliseconds(settle),
        "depths_ms": await milliseconds(lambda: queue_depths.queued(database)),
        "queue_states_ms": await milliseconds(lambda: queries.queue_states(database)),
        "runnable_ms": await milliseconds(lambda: recovery.runnable_chunks(database)),
        "expired_leases_ms": await milliseconds(lambda: recovery.expired_leases(database, _LEASE)),
        "list_jobs_ms": await milliseconds(lambda: queries.recent_jobs(database, state=None, kind=None, limit=20)),
    }


async def expiry(database: Database, connection: psycopg.Connection[Any], first: int, chunks: int) -> float:
    """Return the seconds until this many chunks of 1,024 rows have expired."""
    last = first + chunks * 1_024 - 1
    connection.execute(_MAKE_JOBS, (first, last))
    connection.execute(
        "UPDATE jobs SET deadline = now() - interval '1 second' WHERE job_id BETWEEN %s AND %s", (first, last)
    )
    connection.execute(_MAKE_EXPIRING, (first, last))
    connection.execute("ANALYZE")
    started, expired = time.perf_counter(), 0
    while expired < chunks * 1_024:
        expired += len(await recovery.expire(database, 4))
    return time.perf_counter() - started


async def measure(url: str, rows: int) -> dict[str, float]:
    """Measure at every size."""
    address = parse_url(url)
    database = await Database(url).open()
    found: dict[str, float] = {}
    smallest: dict[str, float] = {}
    with psycopg.connect(address.url, autocommit=True, **address.arguments()) as connection:
        connection.execute("SET statement_timeout = 0")
        await JobIds(database).allocate([1])
        connection.execute(_MAKE_BATCHES)
        made = 2_000
        for size in (*SIZES, None):
            if size is None:  # what is done, beside as many queued as before
                start = PARTITION_JOBS
                for partition in range(1, 1 + -(-rows // PARTITION_JOBS)):
                    connection.execute("SELECT setval('job_id_blocks', %s)", (partition * PARTITION_JOBS // 1_024,))
                    await JobIds(database).allocate([1])
                for at in range(start, start + rows, 500_000):
                    last = min(at + 500_000, start + rows) - 1
                    connection.execute(_MAKE_JOBS, (at, last))
                    connection.execute(_MAKE_OUTCOMES, (at, last))
                    connection.execute(_MAKE_DONE, (at, last))
                label = f"and {rows:,} done"
            else:
                connection.execute(_MAKE_JOBS, (made, 2_000 + size - 1))
                connection.execute(_MAKE_QUEUED, (made, 2_000 + size - 1))
                made = 2_000 + size
                label = f"{size:,} queued"
            connection.execute("VACUUM ANALYZE")
            for name, value in (await statements(database)).items():
                smallest.setdefault(name, value)
                found[f"{name} {label}"] = value
                found[f"  ratio {name} {label}"] = value / smallest[name]
        await expiry(database, connection, 2_000_000, 4)  # warm
        small = await expiry(database, connection, 2_100_000, 64)
        large = await expiry(database, connection, 2_300_000, 256)
    await database.close()
    return found | {
        "expiry_seconds 64 chunks": small,
        "expiry_seconds 256 chunks": large,
        "  ratio expiry": large / small,
    }


def main() -> None:
    """Run it and show the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows that are done")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="yyc3-bench-") as folder:
        needed, free = options.rows * BYTES_A_ROW, shutil.disk_usage(folder).free
        print(f"about {needed / 1e9:.1f} GB are written to {folder}, {free / 1e9:.0f} GB are free")
        if needed > free * 0.9:
            raise SystemExit("that is too much for this disk; give --rows")
        with SupervisorClient(Path(folder), ["postgres"]) as servers:
            migrate.upgrade(servers.urls["postgres"])
            numbers = asyncio.run(measure(servers.urls["postgres"], options.rows))
    show("growth of the store", numbers)


if __name__ == "__main__":
    main()
