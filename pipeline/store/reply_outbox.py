"""Replies to callers of the intake queue, as a transactional outbox: one row a reply, deleted when it was sent."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pipeline.store.database import Database
from pipeline.store.replays import is_current
from schemas.ids import JobId


@dataclass(frozen=True, slots=True)
class PendingReply:
    """A reply to send when the job is settled."""

    job_id: JobId
    queue: str
    tenant: str
    job_key: str


async def enqueue(database: Database, replies: Sequence[PendingReply]) -> None:
    """Store replies; safe to call again.

    A reply that is pending and is being sent at this moment becomes pending once more: the
    sender's delete commits first.
    """
    replies = sorted(replies, key=lambda reply: (reply.job_id, reply.queue))  # one order of locks
    async with database.connection() as connection:
        await connection.execute(
            """INSERT INTO reply_outbox (job_id, queue, tenant, job_key)
               SELECT DISTINCT ON (job_id, queue) *
               FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[]) AS o(job_id, queue, tenant, job_key)
               ORDER BY job_id, queue ON CONFLICT (job_id, queue) DO UPDATE SET job_key = excluded.job_key""",
            (
                [reply.job_id for reply in replies],
                [reply.queue for reply in replies],
                [reply.tenant for reply in replies],
                [reply.job_key for reply in replies],
            ),
        )


@asynccontextmanager
async def claim_due(
    database: Database, job_ids: Sequence[JobId]
) -> AsyncIterator[tuple[list[PendingReply], list[PendingReply]]]:
    """Lock the replies of those jobs that are settled; yield them, and a list for those that were sent.

    Replies in the second list are deleted when the block ends without an exception. If the sender
    dies before, they stay and are sent again.
    """
    async with database.transaction() as connection:
        cursor = await connection.execute(
            f"""SELECT r.job_id, r.queue, r.tenant, r.job_key FROM reply_outbox r
               WHERE r.job_id = ANY(%(ids)s)
                   AND EXISTS (SELECT 1 FROM outcomes o WHERE o.job_id = r.job_id AND {is_current("o")})
               ORDER BY r.job_id FOR UPDATE OF r SKIP LOCKED""",
            {"ids": list(job_ids)},
        )
        due = [PendingReply(**row) for row in await cursor.fetchall()]
        sent: list[PendingReply] = []
        yield due, sent
        if sent:
            await connection.execute(
                """DELETE FROM reply_outbox r USING unnest(%s::bigint[], %s::text[]) AS sent(job_id, queue)
                   WHERE r.job_id = sent.job_id AND r.queue = sent.queue""",
                ([reply.job_id for reply in sent], [reply.queue for reply in sent]),
            )


async def pending_after(database: Database, after: JobId, limit: int) -> list[JobId]:
    """Return the next jobs that have a pending reply, by id."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT DISTINCT job_id FROM reply_outbox WHERE job_id > %s ORDER BY job_id LIMIT %s", (after, limit)
        )
        return [JobId(row["job_id"]) for row in await cursor.fetchall()]
