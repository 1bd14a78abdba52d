"""Claim chunks. Leases use the clock of the database alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from pipeline.policies.retries import LONGEST_DELAY
from pipeline.store.database import Database
from pipeline.store.pauses import may_run
from pipeline.store.replays import LATEST_REPLAY
from schemas.doorbells import Lane
from schemas.ids import BatchId, JobId


@dataclass(frozen=True, slots=True)
class Room:
    """What a worker has memory for: chunks of these bytes together; `alone` if it has nothing else, so one may be larger."""

    bytes: int
    alone: bool


MUCH_ROOM = Room(2**62, alone=True)
SMALL_BYTES = 262_144
"""Chunks of no more bytes are claimed whatever else is in memory: no chat waits for pictures."""
AGING_SECONDS = 600
"""Time in a queue that counts as one step of priority."""


@dataclass(slots=True)
class ClaimedJob:
    """A row to run.

    Attributes:
        replay: 0, and one more for every replay.
        queue_wait_seconds: since it was stored or replayed, on the database clock.
        seconds_to_deadline: on the database clock, at the claim; None without a deadline.
        failed_attempts: earlier engine attempts that failed and count.
    """

    job_id: JobId
    replay: int
    tenant: str
    kind: str
    request: bytes
    queue_wait_seconds: float
    seconds_to_deadline: float | None
    failed_attempts: int


@dataclass(frozen=True, slots=True)
class Claim:
    """The hold of one worker on a chunk.

    Attributes:
        fence: says whose writes count.
        jobs: its rows without an outcome.
        bytes: of the requests of all its rows; 0 if a former version stored it.
        tenant, batch_name: of its batch, to be shown.
        seconds_to_expiry: until its batch expires, on the database clock, at the claim; None if it does not.
    """

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
    bytes: int = 0
    tenant: str = ""
    batch_name: str | None = None
    seconds_to_expiry: float | None = None


# No delay is that long: the clock was set back while the chunk was queued.
_TOO_LATE = f"due_at > now() + interval '{LONGEST_DELAY.total_seconds() * 2:.0f} seconds' AND due_at < 'infinity'"
IS_DUE = f"(due_at <= now() OR ({_TOO_LATE}))"
"""SQL for whether a queued chunk may be claimed now; one that waits for the canary of its batch is due at infinity."""

_CLAIMED = """
    state = 'running', run_id = picked.run_id, fence = c.fence + 1, worker = %(worker)s,
    lease_expires_at = now() + %(lease)s, started_at = coalesce(c.started_at, now())
FROM picked WHERE c.first_job_id = picked.first_job_id
RETURNING c.first_job_id, c.run_id, c.fence, c.rows, c.model, c.lane, c.batch_id, c.priority, c.rounds, c.reply_to, c.bytes,
    c.tenant, (SELECT b.name FROM batches b WHERE b.batch_id = c.batch_id) AS batch_name,
    (SELECT extract(epoch FROM b.expires_at - now())::float8 FROM batches b WHERE b.batch_id = c.batch_id) AS seconds_to_expiry,
    c.fence = 1 AND c.succeeded + c.failed + c.cancelled + c.expired = 0 AS untouched
"""
# Only the first chunks that have no more bytes together than the worker has room for, and small ones always.
_WITHIN_ROOM = f"(total <= %(room)s OR bytes <= {SMALL_BYTES} OR (n = 1 AND %(alone)s))"
# A claim whose reply was lost is repeated with the same run_id and finds its own chunk. A chunk is left if a more urgent one
# waits in its lane: `claim_best` takes that one.
_CLAIM_NAMED = f"""
WITH free AS MATERIALIZED (
    SELECT c.first_job_id, n.run_id, c.bytes
    FROM unnest(%(chunks)s::bigint[], %(run_ids)s::uuid[]) AS n(first_job_id, run_id)
    JOIN chunks c USING (first_job_id)
    WHERE (c.state = 'queued' AND {IS_DUE} AND NOT EXISTS (
        SELECT FROM chunks u WHERE u.model = c.model AND u.lane = c.lane AND u.state = 'queued'
            AND coalesce(u.batch_id, 0) = 0 AND u.priority < c.priority AND {IS_DUE}
    )) OR (c.state = 'running' AND c.run_id = n.run_id)
    FOR UPDATE OF c SKIP LOCKED
), picked AS (
    SELECT first_job_id, run_id FROM (
        SELECT first_job_id, run_id, bytes, row_number() OVER named AS n, sum(bytes) OVER named AS total
        FROM free WINDOW named AS (ORDER BY bytes, first_job_id)  -- a large one keeps no small one waiting
    ) f WHERE {_WITHIN_ROOM}
)
UPDATE chunks c SET {_CLAIMED}
"""
# The best chunks of a lane, read from an index however many are queued: first the groups of one batch and priority, by
# skipping from one to the next; then the first chunk of each, by which the groups are ranked; then the chunks themselves.
# Ten minutes in the queue count as one step of priority, so no chunk starves. Among equals, the tenant with the fewest running
# chunks goes first, of its batches the one with the fewest for its weight, then the nearest deadline. A batch that is paused,
# or begins later, is left out. What another claim has locked is skipped.
_IN_LANE = "model = %(model)s AND lane = %(lane)s AND state = 'queued'"
_BATCH = "coalesce(batch_id, 0)"
_GROUPS = f"""
groups AS (
    (SELECT {_BATCH} AS batch, priority FROM chunks WHERE {_IN_LANE} ORDER BY {_BATCH}, priority LIMIT 1)
    UNION ALL
    SELECT n.batch, n.priority FROM groups g CROSS JOIN LATERAL (
        SELECT {_BATCH} AS batch, priority FROM chunks
        WHERE {_IN_LANE} AND ({_BATCH}, priority) > (g.batch, g.priority) ORDER BY {_BATCH}, priority LIMIT 1
    ) n
)
"""
_CLAIM_BEST = f"""
WITH RECURSIVE {_GROUPS}, busy AS (
    SELECT batch_id, count(*) AS running FROM chunks
    WHERE state = 'running' AND model = %(model)s AND batch_id IS NOT NULL GROUP BY batch_id
), busy_tenants AS (
    SELECT b.tenant, sum(running) AS running FROM busy JOIN batches b USING (batch_id) GROUP BY b.tenant
), ranked AS MATERIALIZED (
    SELECT g.batch, g.priority FROM groups g CROSS JOIN LATERAL (
        SELECT created_at, deadline, first_job_id FROM chunks
        WHERE {_IN_LANE} AND {_BATCH} = g.batch AND priority = g.priority AND {IS_DUE}
        ORDER BY deadline, first_job_id LIMIT 1
    ) head
    LEFT JOIN batches b ON b.batch_id = g.batch
    LEFT JOIN busy ON busy.batch_id = g.batch
    LEFT JOIN busy_tenants t ON t.tenant = b.tenant
    WHERE {may_run("g.batch")}
    ORDER BY g.priority - floor(extract(epoch FROM now() - head.created_at) / {AGING_SECONDS}),
        coalesce(t.running, 0), coalesce(busy.running, 0)::float8 / coalesce(b.weight, 1),
        head.deadline NULLS LAST, head.first_job_id
), again AS MATERIALIZED (
    SELECT first_job_id, run_id FROM chunks WHERE run_id = ANY(%(run_ids)s) AND state = 'running' FOR UPDATE
), wanted AS MATERIALIZED (
    SELECT run_id, row_number() OVER (ORDER BY n) AS n
    FROM unnest(%(run_ids)s::uuid[]) WITH ORDINALITY AS g(run_id, n) WHERE run_id NOT IN (SELECT run_id FROM again)
), taken AS MATERIALIZED (
    SELECT c.first_job_id, c.bytes FROM ranked r CROSS JOIN LATERAL (
        SELECT first_job_id, bytes FROM chunks
        WHERE {_IN_LANE} AND {_BATCH} = r.batch AND priority = r.priority AND {IS_DUE}
        ORDER BY deadline, first_job_id LIMIT %(most)s FOR UPDATE SKIP LOCKED
    ) c LIMIT (SELECT count(*) FROM wanted)
), picked AS (
    SELECT first_job_id, run_id FROM (
        SELECT first_job_id, bytes, row_number() OVER () AS n, sum(bytes) OVER (ROWS UNBOUNDED PRECEDING) AS total FROM taken
    ) t JOIN wanted USING (n) WHERE {_WITHIN_ROOM}
    UNION ALL SELECT first_job_id, run_id FROM again
)
UPDATE chunks c SET {_CLAIMED}
"""
# The ids are repeated in every join: without them the planner may read a whole partition.
_ROWS = f"""
SELECT j.job_id, coalesce(r.replay + 1, 0)::int AS replay, j.tenant, j.kind, j.request,
       extract(epoch FROM now() - coalesce(r.at, j.created_at))::float8 AS queue_wait_seconds,
       extract(epoch FROM j.deadline - now())::float8 AS seconds_to_deadline,
       coalesce(f.attempts, 0) AS failed_attempts
FROM jobs j
{LATEST_REPLAY}
LEFT JOIN outcomes o ON o.job_id = j.job_id AND o.replay = coalesce(r.replay + 1, 0) AND o.job_id = ANY(%(ids)s)
LEFT JOIN (
    SELECT job_id, replay, count(*) AS attempts FROM failed_attempts WHERE job_id = ANY(%(ids)s) GROUP BY job_id, replay
) f ON f.job_id = j.job_id AND f.replay = coalesce(r.replay + 1, 0)
WHERE j.job_id = ANY(%(ids)s) AND o.job_id IS NULL
ORDER BY j.job_id
"""
# A chunk that is claimed for the first time, and of which no row was cancelled, has neither outcomes nor failed attempts.
_ROWS_UNTOUCHED = """
SELECT job_id, 0 AS replay, tenant, kind, request, extract(epoch FROM now() - created_at)::float8 AS queue_wait_seconds,
       extract(epoch FROM deadline - now())::float8 AS seconds_to_deadline, 0 AS failed_attempts
FROM jobs WHERE job_id = ANY(%(ids)s) ORDER BY job_id
"""


async def claim_named(
    database: Database, wanted: Sequence[tuple[JobId, UUID]], *, worker: str, lease: timedelta, room: Room = MUCH_ROOM
) -> dict[UUID, Claim]:
    """Claim the named chunks; those that another worker holds, that are done or less urgent than another are left out.

    Safe to call again with the same run ids.

    Args:
        database: where they are.
        wanted: chunks, and the run that each is for.
        worker: shown with them.
        lease: of each.
        room: what the worker has memory for; chunks beyond it are left out, larger ones first.
    """
    arguments = {
        "chunks": [chunk for chunk, _ in wanted],
        "run_ids": [run_id for _, run_id in wanted],
        "worker": worker,
        "lease": lease,
        "room": room.bytes,
        "alone": room.alone,
    }
    async with database.connection() as connection:
        claimed = await (await connection.execute(_CLAIM_NAMED, arguments)).fetchall()
        return await _with_rows(connection, claimed)


async def claim_best(
    database: Database,
    model: str,
    lane: Lane,
    run_ids: Sequence[UUID],
    *,
    worker: str,
    lease: timedelta,
    room: Room = MUCH_ROOM,
) -> dict[UUID, Claim]:
    """Claim the queued chunks of a model and lane that should run next, one for each run id while there are any.

    Safe to call again with the same run ids: a chunk that a run holds already is returned. See claim_named for `room`.
    """
    arguments: dict[str, Any] = {
        "model": model,
        "lane": lane,
        "run_ids": list(run_ids),
        "most": len(run_ids),
        "worker": worker,
        "lease": lease,
        "room": room.bytes,
        "alone": room.alone,
    }
    async with database.connection() as connection:
        claimed = await (await connection.execute(_CLAIM_BEST, arguments)).fetchall()
        return await _with_rows(connection, claimed)


async def waiting_bytes(database: Database, model: str, lane: Lane, chunk: JobId | None) -> int | None:
    """Return how large a chunk of a model and lane is that could be claimed now: the named one, or one of the next."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""SELECT bytes FROM chunks WHERE {_IN_LANE} AND {IS_DUE}
                ORDER BY first_job_id <> coalesce(%(chunk)s, first_job_id), priority, deadline, first_job_id LIMIT 1""",
            {"model": model, "lane": lane, "chunk": chunk},
        )
        row = await cursor.fetchone()
        return None if row is None else int(row["bytes"])


async def _with_rows(connection: AsyncConnection[DictRow], claimed: Sequence[DictRow]) -> dict[UUID, Claim]:
    """Read the rows of claimed chunks: two statements at most, binary, so that requests come as they were stored."""
    jobs: dict[int, ClaimedJob] = {}
    for untouched in {chunk["untouched"] for chunk in claimed}:
        chunks = [chunk for chunk in claimed if chunk["untouched"] == untouched]
        ids = [job_id for chunk in chunks for job_id in _job_ids(chunk)]
        cursor = await connection.execute(_ROWS_UNTOUCHED if untouched else _ROWS, {"ids": ids}, binary=True)
        jobs |= {row["job_id"]: ClaimedJob(**row) for row in await cursor.fetchall()}
    claims: dict[UUID, Claim] = {}
    for chunk in claimed:
        fields = {key: value for key, value in chunk.items() if key not in {"lane", "untouched"}}
        rows = tuple(jobs[job_id] for job_id in _job_ids(chunk) if job_id in jobs)
        claims[chunk["run_id"]] = Claim(**fields, lane=Lane(chunk["lane"]), jobs=rows)
    return claims


def _job_ids(chunk: DictRow) -> range:
    first: int = chunk["first_job_id"]
    return range(first, first + chunk["rows"])


async def cancelled(database: Database, job_ids: Sequence[JobId]) -> list[JobId]:
    """Return those of these jobs that were cancelled."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT job_id FROM outcomes WHERE job_id = ANY(%s) AND state = 'cancelled'", (list(job_ids),)
        )
        return [JobId(row["job_id"]) for row in await cursor.fetchall()]
