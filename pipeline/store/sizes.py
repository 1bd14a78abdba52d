"""How large the tables are, and how fast the database grows."""

from dataclasses import dataclass

from pipeline.store.database import Database

# A partitioned table with all its partitions; indexes and large values included. Rows as the last ANALYZE counted them.
_TABLES = """
SELECT root.relname AS name, sum(pg_total_relation_size(part.relid))::bigint AS bytes,
    sum(greatest(c.reltuples, 0))::bigint AS rows, count(*) AS partitions
FROM pg_class root CROSS JOIN LATERAL (
    SELECT relid FROM pg_partition_tree(root.oid) WHERE isleaf
    UNION ALL SELECT root.oid WHERE root.relkind = 'r'
) part JOIN pg_class c ON c.oid = part.relid
WHERE root.relnamespace = current_schema()::regnamespace AND root.relkind IN ('r', 'p') AND NOT root.relispartition
GROUP BY root.relname ORDER BY bytes DESC, name
"""
# What a job takes, of the database as it is; and how many were settled within a day, which `usage_hourly` knows.
_GROWTH = """
SELECT pg_database_size(current_database()) AS bytes, (
    SELECT coalesce(sum(succeeded + failed + cancelled + expired), 0)::bigint FROM usage_hourly
    WHERE hour > now() - interval '24 hours'
) AS jobs_a_day, (
    SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'jobs'::regclass
) AS jobs
"""


@dataclass(frozen=True, slots=True)
class TableSize:
    """A table with its indexes, all partitions together; `rows` is an estimate of Postgres."""

    name: str
    bytes: int
    rows: int
    partitions: int


@dataclass(frozen=True, slots=True)
class Growth:
    """The size of the database, and what a day like the last one adds; 0 where too little is known."""

    bytes: int
    bytes_a_day: int


async def table_sizes(database: Database) -> list[TableSize]:
    """Return the tables, the largest first."""
    async with database.connection() as connection:
        return [TableSize(**row) for row in await (await connection.execute(_TABLES)).fetchall()]


async def growth(database: Database) -> Growth:
    """Return how large the database is and how fast it grows."""
    async with database.connection() as connection:
        row = await (await connection.execute(_GROWTH)).fetchone()
    assert row is not None, "it is one row"
    a_job = row["bytes"] / row["jobs"] if row["jobs"] else 0
    return Growth(row["bytes"], int(a_job * row["jobs_a_day"]))
