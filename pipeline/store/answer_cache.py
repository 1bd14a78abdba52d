"""Answers by question: what was asked before, with the same words of the same model, need not be asked again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pipeline.store.database import Database
from schemas.ids import JobId

_KEEP_DAYS = 30

# Keys are hashes, so the planner expects each to be there once; the outcome is found by its primary key.
_LOOK_UP = """
SELECT a.key, o.job_id, o.answer::text AS answer, o.endpoint, o.model_revision, o.engine_version, o.simulated
FROM answers a JOIN outcomes o ON o.job_id = a.job_id AND o.series = a.series
WHERE a.key = ANY(%s) AND o.answer IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Original:
    """The answer to a question that was asked before; `answer` is the result's JSON, `job_id` the job that asked."""

    job_id: JobId
    answer: bytes
    endpoint: str | None
    model_revision: str | None
    engine_version: str | None
    simulated: bool


async def look_up(database: Database, keys: Sequence[UUID]) -> dict[UUID, Original]:
    """Answers to these questions, as far as there are some."""
    async with database.connection() as connection:
        rows: list[dict[str, Any]] = await (await connection.execute(_LOOK_UP, (list(keys),))).fetchall()
    return {row.pop("key"): Original(**{**row, "answer": row["answer"].encode()}) for row in rows}


async def forget_old(database: Database) -> int:
    """Forget answers older than a month; the outcomes stay."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "DELETE FROM answers WHERE created_at < now() - make_interval(days => %s)", (_KEEP_DAYS,)
        )
        return cursor.rowcount


async def forget_all(database: Database) -> None:
    """Forget every answer; the outcomes stay."""
    async with database.connection() as connection:
        await connection.execute("DELETE FROM answers")


__all__ = ["Original", "forget_all", "forget_old", "look_up"]
