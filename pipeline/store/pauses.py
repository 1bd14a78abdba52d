"""What is paused: a row each, which claims read, so that it survives everything and is the same everywhere."""

from pipeline.store.database import Database
from schemas.errors import BatchNotFound
from schemas.ids import BatchId


def may_run(batch_id: str) -> str:
    """SQL for whether a batch is neither paused nor to begin later; `batch_id` is SQL too, and may be of no batch."""
    return (
        f"NOT EXISTS (SELECT FROM pauses p WHERE p.scope = 'batch' AND p.name = {batch_id}::text) "
        f"AND NOT EXISTS (SELECT FROM batches n WHERE n.batch_id = {batch_id} AND n.not_before > now())"
    )


async def pause(database: Database, batch_id: BatchId, *, by_whom: str, reason: str) -> None:
    """Let no more rows of a batch begin until it is resumed; one that is paused keeps its pause. Safe to call again.

    Raises:
        BatchNotFound: there is no such batch.
    """
    async with database.connection() as connection:
        cursor = await connection.execute(
            """INSERT INTO pauses AS p (scope, name, by_whom, reason)
               SELECT 'batch', batch_id::text, %(by_whom)s, %(reason)s FROM batches WHERE batch_id = %(batch)s
               ON CONFLICT (scope, name) DO UPDATE SET reason = p.reason RETURNING name""",
            {"batch": batch_id, "by_whom": by_whom, "reason": reason},
        )
        if await cursor.fetchone() is None:
            raise BatchNotFound(f"there is no batch {batch_id}", batch_id=batch_id)


async def resume(database: Database, batch_id: BatchId) -> bool:
    """End the pause of a batch; False if it was not paused.

    Raises:
        BatchNotFound: there is no such batch.
    """
    async with database.connection() as connection:
        cursor = await connection.execute(
            """WITH gone AS (DELETE FROM pauses WHERE scope = 'batch' AND name = %(name)s RETURNING name)
               SELECT EXISTS (SELECT FROM gone) AS was_paused FROM batches WHERE batch_id = %(batch)s""",
            {"name": str(int(batch_id)), "batch": batch_id},
        )
        row = await cursor.fetchone()
    if row is None:
        raise BatchNotFound(f"there is no batch {batch_id}", batch_id=batch_id)
    return bool(row["was_paused"])
