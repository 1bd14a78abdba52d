"""What is kept for a limited time: endpoint samples and cached answers."""

from pipeline.store import Database, answer_cache, endpoint_samples
from pipeline.store.endpoint_samples import EndpointSample


async def test_samples_are_kept_a_week_and_cached_answers_a_month(database: Database) -> None:
    sample = EndpointSample("w", "http://a", "m", "bulk", "closed", None, 1, 2, 3, 4.0, 5.0, 6, None, 0.0, 0.5)
    await endpoint_samples.write(database, [sample])
    assert await endpoint_samples.latest(database) == [sample]
    async with database.connection() as connection:
        await connection.execute("UPDATE endpoint_samples SET at = now() - interval '1 minute'")
        await connection.execute(
            """INSERT INTO answer_cache (key, tenant, job_id, replay)
               VALUES (gen_random_uuid(), 'default', 1, 0), (gen_random_uuid(), 'default', 2, 0)"""
        )
        await connection.execute("UPDATE answer_cache SET created_at = now() - interval '31 days' WHERE job_id = 1")
    assert await endpoint_samples.latest(database) == []
    assert await endpoint_samples.delete_old(database) == 0
    async with database.connection() as connection:
        await connection.execute("UPDATE endpoint_samples SET at = now() - interval '8 days'")
    assert await endpoint_samples.delete_old(database) == 1
    assert await answer_cache.delete_old(database) == 1
