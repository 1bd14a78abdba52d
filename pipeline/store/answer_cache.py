"""Answers by question: what the same model was asked before in the same words is not asked again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pipeline.store.database import Database
from schemas.ids import JobId

_KEEP_DAYS = 30

# Keys are hashes, so the planner expects one row for each; the outcome is found by its primary key.
_LOOK_UP = """
SELECT a.key, a.tenant, o.job_id, o.answer, o.label, o.confidence, o.score, o.endpoint, o.model_revision, o.engine_version,
       o.simulated
FROM answer_cache a JOIN outcomes o ON o.job_id = a.job_id AND o.replay = a.replay AND o.tenant = a.tenant
WHERE a.key = ANY(%s) AND o.answer IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """An answer that may be copied; `answer` is the JSON of the result, `job_id` the job that asked the engine."""

    job_id: JobId
    tenant: str
    answer: bytes
    label: str | None
    confidence: float | None
    score: float | None
    endpoint: str | None
    model_revision: str | None
    engine_version: str | None
    simulated: bool


async def look_up(database: Database, keys: Sequence[UUID]) -> dict[UUID, CachedAnswer]:
    """Find the cached answers of these questions; a question without one is left out."""
    async with database.connection() as connection:
        cursor = await connection.execute(_LOOK_UP, (list(keys),), binary=True)
        rows: list[dict[str, Any]] = await cursor.fetchall()
    return {row.pop("key"): CachedAnswer(**row) for row in rows}


async def delete_old(database: Database) -> int:
    """Delete entries older than 30 days and return how many; the outcomes stay."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "DELETE FROM answer_cache WHERE created_at < now() - make_interval(days => %s)", (_KEEP_DAYS,)
        )
        return cursor.rowcount


async def delete_all(database: Database) -> None:
    """Delete every entry; the outcomes stay."""
    async with database.connection() as connection:
        await connection.execute("DELETE FROM answer_cache")
