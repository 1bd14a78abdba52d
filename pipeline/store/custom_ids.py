"""The custom ids of a batch while its file is read, so that Postgres finds a repeated one, however far apart the lines are.

Each batch has a table of its own, which is dropped when its file was read. It is not worth a log: Postgres empties it after a
crash, and it is made again from the jobs. An entry of line 0 says that nothing is missing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import md5

import psycopg
from psycopg.rows import DictRow

from pipeline.store.database import Database
from schemas.errors import BatchTakenOver, StoreUnavailable
from schemas.ids import BatchId


async def prepare(database: Database, batch_id: BatchId, lines: int) -> None:
    """Make the table of a batch, unless it is there, and forget lines after these: they were never stored."""
    table = _table(batch_id)
    async with database.connection() as connection:
        with suppress(psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable):  # another process was quicker
            await connection.execute(
                f"CREATE UNLOGGED TABLE IF NOT EXISTS {table} (digest bytea PRIMARY KEY, line bigint NOT NULL)"
            )
        await connection.execute(f"DELETE FROM {table} WHERE line > %s", (lines,))
    if not lines:
        await _mark_whole(database, batch_id)


async def forget(database: Database, batch_id: BatchId) -> None:
    """Drop the table of a batch."""
    async with database.connection() as connection:
        await connection.execute(f"DROP TABLE IF EXISTS {_table(batch_id)}")


async def forget_ended(database: Database) -> None:
    """Drop tables of batches whose files are not read any more, which their readers left."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            r"""SELECT b.batch_id FROM pg_class c JOIN batches b ON b.batch_id = substring(c.relname FROM 12)::bigint
                WHERE c.relnamespace = current_schema()::regnamespace AND c.relname ~ '^custom_ids_[0-9]+$' AND (
                    b.input_complete OR b.cancelled_at IS NOT NULL OR b.failed_at IS NOT NULL OR b.expires_at <= now())"""
        )
        for row in await cursor.fetchall():
            await connection.execute(f"DROP TABLE IF EXISTS {_table(row['batch_id'])}")


def _table(batch_id: BatchId) -> str:
    return f"custom_ids_{int(batch_id)}"


def _digest(custom_id: str) -> bytes:
    return md5(custom_id.encode(), usedforsecurity=False).digest()


async def earlier_lines(
    database: Database, batch_id: BatchId, ids: Sequence[tuple[str, int]], *, stored: bool = True
) -> dict[int, int]:
    """Remember the custom ids of these lines; returns those that an earlier line has, each with that line.

    Safe to call again with the same lines.

    Args:
        database: where they are.
        batch_id: whose lines they are.
        ids: custom ids and their lines.
        stored: whether the lines before these are jobs, from which the ids can be made again.

    Raises:
        StoreUnavailable: also where ids were lost and cannot be made again.
    """
    first: dict[bytes, int] = {}
    found: dict[int, int] = {}
    for custom_id, line in ids:
        earlier = first.setdefault(_digest(custom_id), line)
        if earlier != line:
            found[line] = earlier
    if not first:
        return found
    while (rows := await _remember(database, batch_id, first)) is None:
        if not stored:
            raise StoreUnavailable("Postgres was restarted while the file was checked; submit it again")
        await _restore(database, batch_id)
    earlier_of = {row["line"]: row["earlier"] for row in rows}
    # A line that repeats one of its own window repeats what that one repeats.
    return {line: earlier_of.get(of, of) for line, of in found.items()} | earlier_of


@contextmanager
def _while_read(batch_id: BatchId) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.UndefinedTable:
        raise BatchTakenOver(f"the file of batch {batch_id} is not read any more", batch_id=batch_id) from None


async def _remember(database: Database, batch_id: BatchId, lines: dict[bytes, int]) -> list[DictRow] | None:
    """Add ids; returns those that other lines have, or None if ids are missing that were there."""
    table = _table(batch_id)
    async with database.connection() as connection:
        with _while_read(batch_id):
            cursor = await connection.execute(
                f"""WITH given AS MATERIALIZED (
                        SELECT * FROM unnest(%(digests)b::bytea[], %(lines)b::bigint[]) AS g(digest, line)
                    ), added AS (
                        INSERT INTO {table} SELECT * FROM given ON CONFLICT DO NOTHING RETURNING digest
                    )
                    SELECT g.line, k.line AS earlier FROM given g JOIN {table} k USING (digest)
                    WHERE k.line <> g.line AND (SELECT count(*) FROM added) < (SELECT count(*) FROM given)""",
                {"digests": list(lines), "lines": list(lines.values())},
            )
        rows = await cursor.fetchall()
        whole = await (await connection.execute(f"SELECT FROM {table} WHERE digest = ''")).fetchone()
    return None if whole is None else rows


async def _restore(database: Database, batch_id: BatchId) -> None:
    """Make the custom ids of a batch again."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT first_job_id, rows FROM chunks WHERE batch_id = %s ORDER BY 1", (batch_id,)
        )
        chunks = await cursor.fetchall()
    for chunk in chunks:
        async with database.connection() as connection:
            cursor = await connection.execute(
                """SELECT custom_id, position + 1 AS line FROM jobs
                   WHERE job_id >= %(first)s AND job_id < %(first)s + %(rows)s AND batch_id = %(batch)s""",
                {"first": chunk["first_job_id"], "rows": chunk["rows"], "batch": batch_id},
            )
            known = {_digest(row["custom_id"]): row["line"] for row in await cursor.fetchall()}
        await _remember(database, batch_id, known)
    await _mark_whole(database, batch_id)


async def _mark_whole(database: Database, batch_id: BatchId) -> None:
    async with database.connection() as connection:
        await connection.execute(f"INSERT INTO {_table(batch_id)} VALUES ('', 0) ON CONFLICT DO NOTHING")
