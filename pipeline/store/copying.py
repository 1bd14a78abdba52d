"""Jobs and chunks of a batch into their tables, with binary COPY."""

import asyncio
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import chain, islice
from typing import NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from pipeline.store.new_rows import NewChunk
from schemas.ids import BatchId

_COPY_ROWS = 20_000
_PAUSE_ROWS = 1_000
_JOBS = {
    "job_id": "int8",
    "position": "int4",
    "kind": "text",
    "deadline": "timestamptz",
    "streamed": "bool",
    "request": "bytea",
    "custom_id": "text",
    "batch_id": "int8",
    "tenant": "text",
}
_CHUNKS = {
    "first_job_id": "int8",
    "rows": "int4",
    "model": "text",
    "tenant": "text",
    "lane": "text",
    "priority": "int2",
    "deadline": "timestamptz",
    "bytes": "int8",
    "input_window": "int4",
    "batch_id": "int8",
}


class BatchJob(NamedTuple):
    """A row of `jobs`, beside its batch and tenant."""

    job_id: int
    position: int
    kind: str
    deadline: datetime | None
    streamed: bool
    request: bytes
    custom_id: str | None


async def copy_jobs(
    connection: AsyncConnection[DictRow], batch_id: BatchId, tenant: str, jobs: Iterable[BatchJob]
) -> None:
    """Write the jobs of a batch; a statement has a time limit, so there is one for each 20,000."""
    left = iter(jobs)
    while (first := next(left, None)) is not None:
        await _copy_some(connection, (batch_id, tenant), chain((first,), islice(left, _COPY_ROWS - 1)))


async def _copy_some(
    connection: AsyncConnection[DictRow], shared: tuple[BatchId, str], jobs: Iterator[BatchJob]
) -> None:
    async with connection.cursor().copy(f"COPY jobs ({', '.join(_JOBS)}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types([*_JOBS.values()])
        for number, job in enumerate(jobs):
            await copy.write_row((*job, *shared))
            if number % _PAUSE_ROWS == 0:
                await asyncio.sleep(0)  # let others of this loop run


async def copy_chunks(
    connection: AsyncConnection[DictRow], batch_id: BatchId, chunks: Iterable[tuple[NewChunk, int]]
) -> None:
    """Write the chunks of a batch, each with the number of its window."""
    async with connection.cursor().copy(f"COPY chunks ({', '.join(_CHUNKS)}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types([*_CHUNKS.values()])
        for chunk, window in chunks:
            values = (getattr(chunk, name) for name in NewChunk.__slots__)
            await copy.write_row((*values, window, batch_id))
