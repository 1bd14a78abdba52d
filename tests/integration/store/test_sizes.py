"""How large the tables are: partitions belong to their table, and a day's jobs say how fast it grows."""

from pipeline.store import Database, sizes
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import store_batch


async def test_partitions_belong_to_their_table_and_a_day_says_how_fast_it_grows(
    database: Database, sandbox: Sandbox
) -> None:
    assert (await sizes.growth(database)).bytes_a_day == 0
    await store_batch(database, 2_000, chunk_rows=500)
    sandbox.query("ANALYZE")
    found = {one.name: one for one in await sizes.table_sizes(database)}
    assert (found["jobs"].rows, found["jobs"].partitions) == (2_000, 1)
    assert found["jobs"].bytes > found["pauses"].bytes
    assert not any(name.startswith("jobs_") for name in found)
    sandbox.query(
        """INSERT INTO usage_hourly (hour, tenant, model, kind, lane, shard, succeeded)
           VALUES (now() - interval '1 hour', 't', 'm', 'intent', 'bulk', 0, 1000),
                  (now() - interval '2 days', 't', 'm', 'intent', 'bulk', 0, 9000)"""
    )
    growth = await sizes.growth(database)
    assert growth.bytes_a_day == growth.bytes // 2


def test_the_command_shows_them(sandbox: Sandbox) -> None:
    shown = sandbox.yyc3("db", "size").stdout
    assert "pauses" in shown
    assert "GB together; a day like the last one adds 0.00 GB" in shown
    assert '"tables":[{"name"' in sandbox.yyc3("db", "size", "--json").stdout
