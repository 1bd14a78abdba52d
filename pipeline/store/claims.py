"""A worker takes chunks and keeps them. Leases run on the database clock alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from pipeline.policies.retries import LONGEST_DELAY
from pipeline.store.database import Database
from pipeline.store.replays import LATEST_REPLAY
from schemas.doorbells import Lane
from schemas.ids import BatchId, JobId

AGING_SECONDS = 600
"""So long in a queue counts as one step of priority."""


@dataclass(slots=True)
class ClaimedJob:
    """A row to be run.

    Attributes:
        series: 1, and one more for every replay.
        queue_wait_seconds: since it was stored, or replayed, on the database clock.
        seconds_to_deadline: on the database clock, when it was claimed; None where it has no deadline.
        failed_tries: engine attempts that failed before and counted.
    """

    job_id: JobId
    series: int
    request: str
    queue_wait_seconds: float
    seconds_to_deadline: float | None
    failed_tries: int


@dataclass(frozen=True, slots=True)
class Claim:
    """One worker's hold on a chunk: the rows without an outcome. `fence` says whose writes count."""

    run_id: UUID
    first_job_id: JobId
    fence: int
    rows: int
    model: str
    lane: Lane
    batch_id: BatchId | None
    priority: int
    rounds: int
    reply_to: str | None
    jobs: tuple[ClaimedJob, ...]


# No delay is that long: the clock was set back while the chunk waited.
IS_DUE = f"(due_at <= now() OR due_at > now() + interval '{LONGEST_DELAY.total_seconds() * 2:.0f} seconds')"
"""SQL for whether a queued chunk may be taken."""

_TAKEN = """
    state = 'running', run_id = picked.run_id, fence = c.fence + 1, worker = %(worker)s,
    lease_expires_at = now() + %(lease)s, started_at = coalesce(c.started_at, now())
FROM picked WHERE c.first_job_id = picked.first_job_id
RETURNING c.first_job_id, c.run_id, c.fence, c.rows, c.model, c.lane, c.batch_id, c.priority, c.rounds, c.reply_to,
    c.fence = 1 AND c.succeeded + c.failed + c.cancelled + c.expired = 0 AS untouched
"""
# A claim whose reply was lost is repeated with the same run_id and finds its own chunk.
_CLAIM_NAMED = f"""
WITH picked AS (
    SELECT c.first_job_id, n.run_id
    FROM unnest(%(chunks)s::bigint[], %(run_ids)s::uuid[]) AS n(first_job_id, run_id)
    JOIN chunks c USING (first_job_id)
    WHERE (c.state = 'queued' AND {IS_DUE}) OR (c.state = 'running' AND c.run_id = n.run_id)
    FOR UPDATE OF c SKIP LOCKED
)
UPDATE chunks c SET {_TAKEN}
"""
_CLAIM_AGAIN = "SELECT first_job_id FROM chunks WHERE run_id = %s AND state = 'running'"
# Somebody waits for each of these: first come, first served, straight from the index however many there are.
_CLAIM_NEXT = f"""
WITH picked AS (
    SELECT first_job_id, %(run_id)s::uuid AS run_id FROM chunks
    WHERE model = %(model)s AND lane = %(lane)s AND state = 'queued' AND {IS_DUE}
    ORDER BY priority, first_job_id LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE chunks c SET {_TAKEN}
"""
# Among equals in priority the batch that has the least running for its weight goes first, then the nearest deadline. Ten
# minutes in the queue count as much as one step of priority: nothing waits for ever.
_CLAIM_BEST = f"""
WITH busy AS (
    SELECT batch_id, count(*) AS running FROM chunks
    WHERE state = 'running' AND model = %(model)s AND batch_id IS NOT NULL GROUP BY batch_id
), picked AS (
    SELECT c.first_job_id, %(run_id)s::uuid AS run_id FROM chunks c
    LEFT JOIN batches b ON b.batch_id = c.batch_id
    LEFT JOIN busy ON busy.batch_id = c.batch_id
    WHERE c.model = %(model)s AND c.lane = %(lane)s AND c.state = 'queued' AND {IS_DUE}
    ORDER BY c.priority - floor(extract(epoch FROM now() - c.created_at) / {AGING_SECONDS}),
        coalesce(busy.running, 0)::float8 / coalesce(b.weight, 1), c.deadline NULLS LAST, c.first_job_id
    LIMIT 1
    FOR UPDATE OF c SKIP LOCKED
)
UPDATE chunks c SET {_TAKEN}
"""
# The ids are named again and again: without them the planner may read a whole partition.
_ROWS = f"""
SELECT j.job_id, coalesce(r.series + 1, 1) AS series, j.request::text AS request,
       extract(epoch FROM now() - coalesce(r.at, j.created_at))::float8 AS queue_wait_seconds,
       extract(epoch FROM j.deadline - now())::float8 AS seconds_to_deadline, coalesce(f.tries, 0) AS failed_tries
FROM jobs j
{LATEST_REPLAY}
LEFT JOIN outcomes o ON o.job_id = j.job_id AND o.series = coalesce(r.series + 1, 1) AND o.job_id = ANY(%(ids)s)
LEFT JOIN (
    SELECT job_id, series, count(*) AS tries FROM failures WHERE job_id = ANY(%(ids)s) GROUP BY job_id, series
) f ON f.job_id = j.job_id AND f.series = coalesce(r.series + 1, 1)
WHERE j.job_id = ANY(%(ids)s) AND o.job_id IS NULL
ORDER BY j.job_id
"""


# A chunk that is claimed for the first time, and of which nothing was cancelled, has neither outcomes nor failures.
_ROWS_UNTOUCHED = """
SELECT job_id, 1 AS series, request::text AS request, extract(epoch FROM now() - created_at)::float8 AS queue_wait_seconds,
       extract(epoch FROM deadline - now())::float8 AS seconds_to_deadline, 0 AS failed_tries
FROM jobs WHERE job_id = ANY(%(ids)s) ORDER BY job_id
"""


async def claim_named(
    database: Database, wanted: Sequence[tuple[JobId, UUID]], *, worker: str, lease: timedelta
) -> dict[UUID, Claim]:
    """Take the named chunks; those that somebody else has, or that are done, are left out.

    Safe to call again with the same run ids.
    """
    arguments = {
        "chunks": [chunk for chunk, _ in wanted],
        "run_ids": [run_id for _, run_id in wanted],
        "worker": worker,
        "lease": lease,
    }
    async with database.connection() as connection:
        taken = await (await connection.execute(_CLAIM_NAMED, arguments)).fetchall()
        return await _with_rows(connection, taken)


async def claim_best(
    database: Database, model: str, lane: Lane, run_id: UUID, *, worker: str, lease: timedelta
) -> Claim | None:
    """Take the queued chunk of a model and lane that should go next; None if there is none.

    Safe to call again with the same run id: a chunk that it holds already is returned.
    """
    arguments: dict[str, Any] = {"model": model, "lane": lane, "run_id": run_id, "worker": worker, "lease": lease}
    async with database.connection() as connection:
        again = await (await connection.execute(_CLAIM_AGAIN, (run_id,))).fetchone()
        if again is not None:
            named = {"chunks": [again["first_job_id"]], "run_ids": [run_id], "worker": worker, "lease": lease}
            taken = await (await connection.execute(_CLAIM_NAMED, named)).fetchall()
        else:
            statement = _CLAIM_BEST if lane is Lane.BULK else _CLAIM_NEXT
            taken = await (await connection.execute(statement, arguments)).fetchall()
        return (await _with_rows(connection, taken)).get(run_id)


async def _with_rows(connection: AsyncConnection[DictRow], taken: Sequence[DictRow]) -> dict[UUID, Claim]:
    if not taken:
        return {}
    jobs: dict[int, ClaimedJob] = {}
    for untouched in {row["untouched"] for row in taken}:
        ids = [
            job_id
            for row in taken
            if row["untouched"] == untouched
            for job_id in range(row["first_job_id"], row["first_job_id"] + row["rows"])
        ]
        cursor = await connection.execute(_ROWS_UNTOUCHED if untouched else _ROWS, {"ids": ids})
        jobs |= {row["job_id"]: ClaimedJob(**row) for row in await cursor.fetchall()}
    claims: dict[UUID, Claim] = {}
    for row in taken:
        first = row["first_job_id"]
        fields = {key: value for key, value in row.items() if key not in {"lane", "untouched"}}
        mine = tuple(jobs[job_id] for job_id in range(first, first + row["rows"]) if job_id in jobs)
        claims[row["run_id"]] = Claim(**fields, lane=Lane(row["lane"]), jobs=mine)
    return claims


async def renew(database: Database, run_ids: Sequence[UUID], lease: timedelta) -> dict[UUID, int]:
    """Keep these runs for another lease.

    Returns:
        Those still held, and how many jobs of the chunk were cancelled so far. A run that is missing belongs to others now.
    """
    async with database.connection() as connection:
        cursor = await connection.execute(
            """WITH mine AS (
                   SELECT first_job_id FROM chunks WHERE run_id = ANY(%s) AND state = 'running'
                   ORDER BY first_job_id FOR UPDATE
               )
               UPDATE chunks c SET lease_expires_at = now() + %s FROM mine WHERE c.first_job_id = mine.first_job_id
               RETURNING c.run_id, c.cancelled""",
            (list(run_ids), lease),
        )
        return {row["run_id"]: row["cancelled"] for row in await cursor.fetchall()}


async def cancelled(database: Database, job_ids: Sequence[JobId]) -> list[JobId]:
    """Which of these were cancelled."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT job_id FROM outcomes WHERE job_id = ANY(%s) AND state = 'cancelled'", (list(job_ids),)
        )
        return [JobId(row["job_id"]) for row in await cursor.fetchall()]


__all__ = ["AGING_SECONDS", "IS_DUE", "Claim", "ClaimedJob", "cancelled", "claim_best", "claim_named", "renew"]
