"""Outcomes that are owed to callers behind the intake queue: a row a reply, deleted when it was sent."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pipeline.store.database import Database
from pipeline.store.replays import stands
from schemas.ids import JobId


@dataclass(frozen=True, slots=True)
class Owed:
    """A reply to be sent when the job is settled."""

    job_id: JobId
    queue: str
    job_key: str


async def owe(database: Database, owed: Sequence[Owed]) -> None:
    """Remember replies; safe to call again.

    One that is owed already, and is being sent at this moment, is owed once more: the sender's delete comes first.
    """
    owed = sorted(owed, key=lambda one: (one.job_id, one.queue))  # one order of locks
    async with database.connection() as connection:
        await connection.execute(
            """INSERT INTO replies (job_id, queue, job_key)
               SELECT DISTINCT ON (job_id, queue) *
               FROM unnest(%s::bigint[], %s::text[], %s::text[]) AS o(job_id, queue, job_key)
               ORDER BY job_id, queue ON CONFLICT (job_id, queue) DO UPDATE SET job_key = excluded.job_key""",
            ([o.job_id for o in owed], [o.queue for o in owed], [o.job_key for o in owed]),
        )


@asynccontextmanager
async def due(database: Database, job_ids: Sequence[JobId]) -> AsyncIterator[tuple[list[Owed], list[Owed]]]:
    """Replies for those of the jobs that are settled, held for the sender, and a list for those that it has sent.

    What is in the list when the block ends well is forgotten. A sender that dies in between leaves them: they are sent again
    rather than never.
    """
    async with database.transaction() as connection:
        cursor = await connection.execute(
            f"""SELECT r.job_id, r.queue, r.job_key FROM replies r
               WHERE r.job_id = ANY(%(ids)s) AND EXISTS (SELECT 1 FROM outcomes o WHERE o.job_id = r.job_id AND {stands("o")})
               ORDER BY r.job_id FOR UPDATE OF r SKIP LOCKED""",
            {"ids": list(job_ids)},
        )
        found = [Owed(**row) for row in await cursor.fetchall()]
        sent: list[Owed] = []
        yield found, sent
        if sent:
            await connection.execute(
                """DELETE FROM replies r USING unnest(%s::bigint[], %s::text[]) AS sent(job_id, queue)
                   WHERE r.job_id = sent.job_id AND r.queue = sent.queue""",
                ([o.job_id for o in sent], [o.queue for o in sent]),
            )


async def owed_after(database: Database, after: JobId, limit: int) -> list[JobId]:
    """The next jobs that replies are owed for, by id."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT DISTINCT job_id FROM replies WHERE job_id > %s ORDER BY job_id LIMIT %s", (after, limit)
        )
        return [JobId(row["job_id"]) for row in await cursor.fetchall()]


__all__ = ["Owed", "due", "owe", "owed_after"]
