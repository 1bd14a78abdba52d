"""Usage by hour, tenant, model, kind and lane: counted with every outcome, so that it outlives the rows."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pipeline.store.database import Database

KEPT_DAYS = 400
GROUPS = {
    "tenant": "tenant",
    "model": "model",
    "kind": "kind",
    "lane": "lane",
    "hour": "hour",
    "day": "date_trunc('day', hour)",
    "month": "date_trunc('month', hour)",
}
"""What usage may be grouped by, and its SQL."""

NOTHING_SPENT = """NULL::bigint AS cached_from, 0 AS prompt_tokens, 0 AS completion_tokens, 0 AS queue_wait_seconds,
    0 AS engine_seconds"""
"""SQL of the columns of outcomes that no engine was asked for."""

_SUMS = ("succeeded", "failed", "cancelled", "expired", "cached", "prompt_tokens", "completion_tokens")
_SECONDS = ("queue_wait_seconds", "engine_seconds")
_ADDED = ", ".join(f"{name} = u.{name} + excluded.{name}" for name in (*_SUMS, *_SECONDS))


def count_usage(outcomes: str, lane: str) -> str:
    """SQL that counts outcomes of a statement that stores them.

    Rows are spread over 16 shards by the connection that counts, so that no row is contended.

    Args:
        outcomes: of a CTE with tenant, model, kind, state, cached_from, tokens and seconds.
        lane: SQL of their lane.
    """
    states = ", ".join(f"count(*) FILTER (WHERE state = '{state}')" for state in _SUMS[:4])
    return f"""
    INSERT INTO usage_hourly AS u (hour, tenant, model, kind, lane, shard, {", ".join((*_SUMS, *_SECONDS))})
    SELECT date_trunc('hour', now()), tenant, coalesce(model, ''), kind, {lane}, mod(pg_backend_pid(), 16), {states},
        count(cached_from),
        coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0), coalesce(sum(queue_wait_seconds), 0),
        coalesce(sum(engine_seconds), 0)
    FROM {outcomes} GROUP BY 2, 3, 4, 5 ORDER BY 2, 3, 4, 5
    ON CONFLICT (hour, tenant, model, kind, lane, shard) DO UPDATE SET {_ADDED}"""


async def usage(
    database: Database,
    by: Sequence[str],
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    tenant: str | None = None,
) -> list[dict[str, Any]]:
    """Return sums for each group, in the order of the groups.

    Args:
        database: where they are.
        by: names of GROUPS.
        since: the first hour.
        until: the hour after the last one.
        tenant: only of this one.
    """
    groups = ", ".join(f"{GROUPS[name]} AS {name}" for name in by)
    numbers = ", ".join(str(number) for number in range(1, len(by) + 1))
    sums = ", ".join(
        [f"sum({name})::bigint AS {name}" for name in _SUMS] + [f"sum({name})::float8 AS {name}" for name in _SECONDS]
    )
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""SELECT {groups}, {sums} FROM usage_hourly
                WHERE (%(since)s::timestamptz IS NULL OR hour >= %(since)s)
                  AND (%(until)s::timestamptz IS NULL OR hour < %(until)s)
                  AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
                GROUP BY {numbers} ORDER BY {numbers}""",
            {"since": since, "until": until, "tenant": tenant},
        )
        return await cursor.fetchall()


async def delete_old(database: Database) -> int:
    """Delete hours that are older than 400 days; returns how many rows."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "DELETE FROM usage_hourly WHERE hour < now() - make_interval(days => %s)", (KEPT_DAYS,)
        )
        return cursor.rowcount
