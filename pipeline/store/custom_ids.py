"""The custom ids of a batch while its file is read, so that Postgres finds a repeated one, however far apart the lines are.

Each batch has a table of its own, which is dropped when its file was read. It is not worth a log: after a crash of Postgres
it is made again from the jobs.
"""

from collections.abc import Sequence
from hashlib import md5

from pipeline.store.database import Database
from schemas.ids import BatchId


async def prepare(database: Database, batch_id: BatchId) -> None:
    """Make the table of a batch, unless it is there."""
    async with database.connection() as connection:
        await connection.execute(
            f"CREATE UNLOGGED TABLE IF NOT EXISTS {_table(batch_id)} (digest bytea PRIMARY KEY, line bigint NOT NULL)"
        )


async def forget(database: Database, batch_id: BatchId) -> None:
    """Drop the table of a batch."""
    async with database.connection() as connection:
        await connection.execute(f"DROP TABLE IF EXISTS {_table(batch_id)}")


def _table(batch_id: BatchId) -> str:
    return f"custom_ids_{int(batch_id)}"


def _digest(custom_id: str) -> bytes:
    return md5(custom_id.encode(), usedforsecurity=False).digest()


async def earlier_lines(database: Database, batch_id: BatchId, ids: Sequence[tuple[str, int]]) -> dict[int, int]:
    """Remember the custom ids of these lines; returns those that an earlier line has, each with that line.

    Safe to call again with the same lines.
    """
    first: dict[bytes, int] = {}
    found: dict[int, int] = {}
    for custom_id, line in ids:
        earlier = first.setdefault(_digest(custom_id), line)
        if earlier != line:
            found[line] = earlier
    if not first:
        return found
    table = _table(batch_id)
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""WITH given AS MATERIALIZED (
                    SELECT * FROM unnest(%(digests)b::bytea[], %(lines)b::bigint[]) AS g(digest, line)
                ), added AS (
                    INSERT INTO {table} SELECT * FROM given ON CONFLICT DO NOTHING RETURNING digest
                )
                SELECT g.line, k.line AS earlier FROM given g JOIN {table} k USING (digest)
                WHERE k.line <> g.line AND (SELECT count(*) FROM added) < (SELECT count(*) FROM given)""",
            {"digests": list(first), "lines": list(first.values())},
        )
        rows = await cursor.fetchall()
    earlier_of = {row["line"]: row["earlier"] for row in rows}
    # A line that repeats one of its own window repeats what that one repeats.
    return {line: earlier_of.get(of, of) for line, of in found.items()} | earlier_of


async def restore(database: Database, batch_id: BatchId, jobs: int) -> None:
    """Make the custom ids of a batch again if they were lost: Postgres empties tables without a log after a crash."""
    table = _table(batch_id)
    async with database.connection() as connection:
        row = await (await connection.execute(f"SELECT count(*) AS known FROM {table}")).fetchone()
        if row is not None and row["known"] >= jobs:
            return
        chunks = await (
            await connection.execute(
                "SELECT first_job_id, rows FROM chunks WHERE batch_id = %s ORDER BY 1", (batch_id,)
            )
        ).fetchall()
    for chunk in chunks:
        async with database.connection() as connection:
            cursor = await connection.execute(
                """SELECT custom_id, position + 1 AS line FROM jobs
                   WHERE job_id >= %(first)s AND job_id < %(first)s + %(rows)s AND batch_id = %(batch)s""",
                {"first": chunk["first_job_id"], "rows": chunk["rows"], "batch": batch_id},
            )
            known = [(row["custom_id"], row["line"]) for row in await cursor.fetchall()]
        await earlier_lines(database, batch_id, known)
