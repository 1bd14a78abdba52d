"""Queued jobs by model, lane and tenant."""

from collections import Counter
from dataclasses import dataclass, field

from pipeline.store.database import Database
from schemas.doorbells import Lane

OPEN_ROWS = "least(rows, greatest(0, rows - succeeded - failed - cancelled - expired))"
"""SQL for the rows of a chunk without an outcome, by its counters; a halved chunk counts too few."""

QUEUED_GROUPS = """groups AS (
    SELECT q.model, q.lane, g.batch, g.priority FROM queued q CROSS JOIN LATERAL (
        SELECT coalesce(batch_id, 0) AS batch, priority FROM chunks c
        WHERE c.model = q.model AND c.lane = q.lane AND state = 'queued' ORDER BY coalesce(batch_id, 0), priority LIMIT 1
    ) g
    UNION ALL
    SELECT g.model, g.lane, n.batch, n.priority FROM groups g CROSS JOIN LATERAL (
        SELECT coalesce(batch_id, 0) AS batch, priority FROM chunks c
        WHERE c.model = g.model AND c.lane = g.lane AND state = 'queued'
            AND (coalesce(batch_id, 0), priority) > (g.batch, g.priority)
        ORDER BY coalesce(batch_id, 0), priority LIMIT 1
    ) n
)"""
"""SQL of a recursive CTE: the batches and priorities that `queued`, a CTE of models and lanes, have in the queue, found by
skipping from one to the next in an index, however many chunks each has."""

# Summed over the shards that a trigger counts in. The rate counts chunks that one run finished: a replayed chunk would count
# all its rows again.
_QUEUED = """
SELECT q.model, q.lane, q.tenant, q.jobs, coalesce(r.rate, 0) AS rate FROM (
    SELECT model, lane, tenant, sum(jobs)::bigint AS jobs FROM queue_depths GROUP BY model, lane, tenant HAVING sum(jobs) > 0
) q
LEFT JOIN LATERAL (
    SELECT sum(rows) / 60.0 AS rate FROM chunks c
    WHERE c.model = q.model AND c.lane = q.lane AND state = 'done' AND fence = 1 AND finished_at > now() - interval '1 minute'
) r ON true
"""


@dataclass(slots=True)
class QueueDepth:
    """Queued jobs of one queue; `jobs_per_second` counts what was finished there in the last minute."""

    jobs: int = 0
    jobs_per_second: float = 0.0
    by_tenant: Counter[str] = field(default_factory=Counter)

    def add(self, tenant: str, jobs: int) -> None:
        """Count more queued jobs of a tenant."""
        self.jobs += jobs
        self.by_tenant[tenant] += jobs


async def queued(database: Database) -> dict[tuple[str, Lane], QueueDepth]:
    """Return the depth of every model and lane with queued jobs."""
    async with database.connection() as connection:
        rows = await (await connection.execute(_QUEUED)).fetchall()
    found: dict[tuple[str, Lane], QueueDepth] = {}
    for row in rows:
        depth = found.setdefault((row["model"], Lane(row["lane"])), QueueDepth(jobs_per_second=float(row["rate"])))
        depth.add(row["tenant"], row["jobs"])
    return found
