"""Full queues: which jobs are refused, and what the refusal says."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from pipeline import AsyncClient
from pipeline.jobs.admission import QueueLimits
from pipeline.models import ModelEntry, Models
from pipeline.store import Database, settlement
from pipeline.store.new_rows import NewJob
from schemas.errors import QueueSaturated
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import claim_queued, store_batch, succeeded

ENTRY = {"name": "m", "kinds": ("intent",), "port": 1}


def limits_of(database: Database, **fields: Any) -> QueueLimits:
    return QueueLimits(Models({"m": ModelEntry.model_validate({**ENTRY, **fields})}), database)


def store(queue_limits: QueueLimits, jobs: int, tenant: str) -> None:
    """Reserve room for a batch, as its storing does."""
    with queue_limits.reserve_batch({"m": jobs}, tenant) as admit:
        admit()


def job(tenant: str = "default") -> NewJob:
    return NewJob("intent", tenant, b"{}", "m", 0)


async def test_a_batch_that_does_not_fit_is_refused_with_depth_and_delay(database: Database) -> None:
    await store_batch(database, 60)
    await settlement.settle(database, [succeeded(await claim_queued(database))])
    queue_limits = limits_of(database, max_queued_bulk=100)
    await queue_limits.refresh()
    store(queue_limits, 40, "default")
    with pytest.raises(QueueSaturated, match=r"m\.bulk has 90 jobs and accepts 100; submit again in 60 s") as raised:
        store(queue_limits, 20, "default")
    assert raised.value.retryable
    facts = raised.value.facts
    assert (facts["queue"], facts["depth"], facts["limit"]) == ("m.bulk", 90, 100)
    assert facts["retry_after_seconds"] == 60, "ten jobs too many, ten were finished in the last minute"


async def test_a_batch_larger_than_the_limit_is_refused_without_a_delay(database: Database) -> None:
    queue_limits = limits_of(database, max_queued_bulk=100)
    await queue_limits.refresh()
    with pytest.raises(QueueSaturated, match="accepts 100 jobs and 101 were submitted at once; split them") as raised:
        store(queue_limits, 101, "default")
    assert "retry_after_seconds" not in raised.value.facts


async def test_a_tenant_has_its_share_and_leaves_the_rest_to_other_tenants(database: Database) -> None:
    await store_batch(database, 45, tenant="loud")
    queue_limits = limits_of(database, max_queued_bulk=100, max_tenant_share=0.5)
    await queue_limits.refresh()
    with pytest.raises(QueueSaturated, match="has 45 jobs of tenant loud and accepts 50"):
        store(queue_limits, 10, "loud")
    store(queue_limits, 50, "quiet")


async def test_each_lane_has_its_own_limit_and_running_jobs_do_not_count(database: Database) -> None:
    await store_batch(database, 10)
    queue_limits = limits_of(database, max_queued_bulk=10, max_queued_interactive=2)
    await queue_limits.refresh()
    assert [queue_limits.admit_one(job()) is None for _ in range(3)] == [True, True, False]
    with pytest.raises(QueueSaturated):
        store(queue_limits, 1, "default")
    await claim_queued(database)
    queue_limits = limits_of(database, max_queued_bulk=10)
    await queue_limits.refresh()
    store(queue_limits, 10, "default")


@pytest.fixture
async def limited(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncClient]:
    """A client of a model whose queues accept three interactive jobs and five bulk jobs."""
    file = sandbox.home / "models.toml"
    file.write_text(
        '[models.chatglm3-6b]\nkinds = ["intent"]\nport = 1\nmax_queued_interactive = 3\nmax_queued_bulk = 5\n'
    )
    monkeypatch.setenv("YYC3_MODELS_FILE", str(file))
    async with AsyncClient(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:
        yield client


async def test_a_submit_is_refused_unless_its_key_is_known(limited: AsyncClient, sandbox: Sandbox) -> None:
    text = {"kind": "intent", "text": "我要退款"}
    first = await limited.submit({**text, "idempotency_key": "a"})
    for _ in range(2):
        await limited.submit(text)
    with pytest.raises(QueueSaturated):
        await limited.submit(text)
    assert await limited.submit({**text, "idempotency_key": "a"}) == first
    batch_id = (await limited.submit_many([text] * 5, idempotency_key="b")).batch_id
    with pytest.raises(QueueSaturated):
        await limited.submit_many([text])
    assert (await limited.submit_many([text] * 5, idempotency_key="b")).batch_id == batch_id
    assert sandbox.query("SELECT count(*) FROM jobs") == [(8,)]
    refused = sandbox.yyc3(
        "submit", "intent", "--text", "我要退款", check=3, YYC3_MODELS_FILE=str(sandbox.home / "models.toml")
    )
    assert "submit again in" in refused.stderr


def test_limits_must_be_above_zero() -> None:
    for fields in ({"max_queued_bulk": 0}, {"max_tenant_share": 0}, {"max_tenant_share": 1.5}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            ModelEntry.model_validate({**ENTRY, **fields})


async def test_a_batch_counts_while_it_is_stored_and_not_if_that_fails(database: Database) -> None:
    queue_limits = limits_of(database, max_queued_bulk=100)
    await queue_limits.refresh()
    with queue_limits.reserve_batch({"m": 80}, "default") as admit:
        admit()
        queue_limits._refreshed_at = None
        await queue_limits.refresh()  # its commit is not visible yet
        with pytest.raises(QueueSaturated, match="has 80 jobs"):
            store(queue_limits, 30, "default")
    with pytest.raises(ZeroDivisionError), queue_limits.reserve_batch({"m": 20}, "default") as admit:
        admit()
        _ = 1 / 0
    store(queue_limits, 20, "default")
