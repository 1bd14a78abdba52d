"""Renew the leases of claimed chunks, and take back crashes that were none. Leases use the clock of the database alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from pipeline.store.database import Database
from schemas.ids import JobId

# What another process has locked is skipped: no other worker can take it meanwhile either, and it is renewed the next time.
_RENEW = """
WITH free AS MATERIALIZED (
    SELECT first_job_id FROM chunks WHERE run_id = ANY(%(runs)s) AND state = 'running'
    ORDER BY first_job_id FOR UPDATE SKIP LOCKED
), renewed AS (
    UPDATE chunks c SET lease_expires_at = now() + %(lease)s FROM free WHERE c.first_job_id = free.first_job_id
)
SELECT run_id, cancelled FROM chunks WHERE run_id = ANY(%(runs)s) AND state = 'running'
"""
# The crash that recovery counted when the lease of this run ended: its worker lives.
_TAKE_BACK = """
WITH lost AS (
    SELECT * FROM unnest(%s::bigint[], %s::int[]) AS lost(first_job_id, fence)
), told AS (
    UPDATE lost_runs r SET lives = true FROM lost WHERE r.first_job_id = lost.first_job_id AND r.fence = lost.fence
)
UPDATE chunks c SET crashes = c.crashes - 1 FROM lost
WHERE c.first_job_id = lost.first_job_id AND c.fence > lost.fence AND c.rows = 1 AND c.crashes > 0
    AND c.state IN ('queued', 'running')
"""


async def renew(database: Database, run_ids: Sequence[UUID], lease: timedelta) -> dict[UUID, int]:
    """Extend the leases of these runs to one lease from now.

    Returns:
        The runs still held, each with the number of jobs of its chunk that were cancelled so far. A
        run that is missing was lost: recovery took its chunk back.
    """
    async with database.connection() as connection:
        cursor = await connection.execute(_RENEW, {"runs": list(run_ids), "lease": lease})
        return {row["run_id"]: row["cancelled"] for row in await cursor.fetchall()}


@dataclass(frozen=True, slots=True)
class HeldChunk:
    """What became of a chunk that a worker holds: whether it was cancelled with its batch, and whether that is paused."""

    first_job_id: JobId
    cancelled: bool
    paused: bool


async def held_chunks(database: Database, chunks: Sequence[JobId]) -> list[HeldChunk]:
    """Return which of these chunks of batches are to be given up: they were cancelled, or their batch is paused."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            """SELECT c.first_job_id, c.state = 'cancelled' AS cancelled, p.name IS NOT NULL AS paused
               FROM chunks c LEFT JOIN pauses p ON p.scope = 'batch' AND p.name = c.batch_id::text
               WHERE c.first_job_id = ANY(%s) AND (c.state = 'cancelled' OR p.name IS NOT NULL)""",
            (list(chunks),),
        )
        return [HeldChunk(**row) for row in await cursor.fetchall()]


async def take_crashes_back(database: Database, lost: Sequence[tuple[JobId, int]]) -> None:
    """Undo the crashes that were counted for these chunks and fences: their worker was silent, and lives.

    Call it once for each run that was lost: it was suspended, or could not reach the database.
    """
    async with database.connection() as connection:
        await connection.execute(_TAKE_BACK, ([chunk for chunk, _ in lost], [fence for _, fence in lost]))
