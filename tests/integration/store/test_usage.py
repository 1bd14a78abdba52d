"""Usage is counted with every outcome, whoever stores it, and each outcome once."""

from datetime import timedelta

from pipeline.store import Database, cancellation, recovery, usage
from pipeline.store.settlement import ChunkState, SettledRow, Settlement
from schemas.ids import JobId
from schemas.results import JobState
from schemas.timings import Timings, Usage
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import claim_queued, new_job, settle_all, store_batch, store_jobs


async def sums(database: Database, *by: str) -> list[dict[str, object]]:
    found = await usage.usage(database, by or ("tenant", "model", "kind", "lane"))
    return [{name: value for name, value in row.items() if value not in (0, None)} for row in found]


async def test_every_way_to_an_outcome_is_counted_once(database: Database, sandbox: Sandbox) -> None:
    await store_batch(database, 4, chunk_rows=4, tenant="sales")
    claim = await claim_queued(database)
    states = (JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.FAILED)
    rows = [
        SettledRow(job.job_id, 0, job.tenant, job.kind, state, model="m")
        for job, state in zip(claim.jobs, states, strict=True)
    ]
    for row in rows:
        row.usage = Usage(prompt_tokens=10, completion_tokens=2)
        row.timings = Timings(queue_wait_seconds=1.0, engine_seconds=0.5)
    rows[2].cached_from = JobId(1)
    settlement = Settlement(claim.first_job_id, claim.fence, rows, next_state=ChunkState.DONE)
    for _ in range(2):  # a reply that was lost
        await settle_all(database, [settlement])
    stored = await store_jobs(database, [new_job(deadline=None), new_job()])
    cancelled = stored.entries[0]
    assert isinstance(cancelled, int)
    await cancellation.cancel(database, cancelled)
    await cancellation.cancel(database, cancelled)
    sandbox.query("UPDATE jobs SET deadline = now() - interval '1 second' WHERE job_id = %s", stored.entries[1])
    sandbox.query("UPDATE chunks SET deadline = now() - interval '1 second' WHERE state = 'queued'")
    await recovery.expire(database)
    assert await sums(database) == [
        {"tenant": "default", "model": "m", "kind": "intent", "lane": "interactive", "cancelled": 1, "expired": 1},
        {
            "tenant": "sales",
            "model": "m",
            "kind": "intent",
            "lane": "bulk",
            "succeeded": 3,
            "failed": 1,
            "cached": 1,
            "prompt_tokens": 40,
            "completion_tokens": 8,
            "queue_wait_seconds": 4.0,
            "engine_seconds": 2.0,
        },
    ]
    (total,) = await usage.usage(database, ["month"], tenant="sales")
    assert total["succeeded"] == 3
    assert await usage.usage(database, ["day"], until=total["month"] - timedelta(days=1)) == []


async def test_hours_are_kept_for_400_days(database: Database, sandbox: Sandbox) -> None:
    sandbox.query(
        """INSERT INTO usage_hourly (hour, tenant, model, kind, lane, shard, succeeded)
           SELECT now() - make_interval(days => d), 't', 'm', 'chat', 'bulk', 0, 1 FROM unnest(ARRAY[1, 399, 401]) d"""
    )
    assert await usage.delete_old(database) == 1
    assert len(await usage.usage(database, ["day"])) == 2


def test_the_command_shows_it(sandbox: Sandbox) -> None:
    assert sandbox.yyc3("usage").stdout == "nothing was done in this time\n"
    sandbox.query(
        """INSERT INTO usage_hourly (hour, tenant, model, kind, lane, shard, succeeded, engine_seconds)
           VALUES (date_trunc('hour', now()), 'sales', 'm', 'chat', 'bulk', 0, 1234, 7200)"""
    )
    shown = sandbox.yyc3("usage", "--by", "tenant,day", "--since", "2d").stdout
    assert "sales" in shown
    assert "1,234" in shown
    assert "2.00" in shown
    assert '"succeeded":1234' in sandbox.yyc3("usage", "--json").stdout
    assert "--by: a is not made of tenant" in sandbox.yyc3("usage", "--by", "a", check=2).stderr
