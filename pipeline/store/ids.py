"""Job ids, allocated in blocks: a process keeps the block that it took, and hands out its ids in ascending order."""

import time

from pipeline.store.database import Database

BLOCK_JOBS = 1_024
"""Ids in a block: one round trip for a thousand jobs. A chunk lies within one block."""

PARTITION_JOBS = 1 << 22
"""Ids in a partition of `jobs` and `outcomes`, which is created when its first block is allocated."""

_KEEP_SECONDS = 600.0
_PARTITION_LOCK = 0x79796333  # any constant that all our processes share


class JobIds:
    """Allocates ids for new jobs without a round trip for each.

    A block is given up ten minutes after it was taken, so that an idle producer never writes far below
    the others. Gaps between ids are normal.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._next = 0
        self._end = 0
        self._taken_at = 0.0
        self._partitions: set[int] = set()

    async def allocate(self, counts: list[int]) -> list[int]:
        """Return the first id of each run of consecutive ids, one run for each count; a count is at most BLOCK_JOBS."""
        firsts: list[int] = []
        if time.monotonic() - self._taken_at > _KEEP_SECONDS:
            self._next = self._end = 0
        blocks: list[int] = []
        for count in counts:
            if count > self._end - self._next:
                if not blocks:
                    blocks = await self._fetch(-(-sum(counts[len(firsts) :]) // BLOCK_JOBS))
                # A run may not cross blocks, so packing can need one block more than the sum suggests.
                block = blocks.pop(0)
                self._next, self._end = block * BLOCK_JOBS, (block + 1) * BLOCK_JOBS
                self._taken_at = time.monotonic()
            firsts.append(self._next)
            self._next += count
        return firsts

    async def _fetch(self, blocks: int) -> list[int]:
        async with self._database.connection() as connection:
            cursor = await connection.execute(
                "SELECT nextval('job_id_blocks') AS block FROM generate_series(1, %s)", (blocks,)
            )
            found = sorted([row["block"] for row in await cursor.fetchall()])
        for partition in sorted({block * BLOCK_JOBS // PARTITION_JOBS for block in found} - self._partitions):
            async with self._database.connection() as connection:
                await connection.execute(_partition_statement(partition))
            self._partitions.add(partition)
        return found


def _partition_statement(partition: int) -> str:
    """Return SQL that creates the partition of both large tables unless it exists: one statement, so no lock waits for us."""
    first, end = partition * PARTITION_JOBS, (partition + 1) * PARTITION_JOBS
    # Not to_regclass: its cache may not know a table that another process created while this one waited.
    there = f"""
        IF EXISTS (
            SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE c.relname = 'outcomes_{partition}' AND c.relnamespace = current_schema()::regnamespace
        ) THEN RETURN; END IF;"""
    created = []
    for table in ("jobs", "outcomes"):
        name, check = f"{table}_{partition}", f"{table}_{partition}_range"
        # Created beside the table, then attached: CREATE ... PARTITION OF would wait for every open COPY, and block all
        # others meanwhile. The check constraint spares ATTACH a scan and is dropped after it.
        created.append(f"""
        CREATE TABLE {name} (LIKE {table} INCLUDING ALL);
        ALTER TABLE {name} ADD CONSTRAINT {check} CHECK (job_id >= {first} AND job_id < {end});
        ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({first}) TO ({end});
        ALTER TABLE {name} DROP CONSTRAINT {check};""")
    lock = f"PERFORM pg_advisory_xact_lock({_PARTITION_LOCK});"
    return f"DO $$ BEGIN {there} {lock} {there} {''.join(created)} END $$"
