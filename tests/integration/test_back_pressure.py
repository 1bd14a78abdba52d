"""Queues that are full: who is refused, who is not, and what is said."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from pipeline import AsyncClient
from pipeline.jobs.admission import QueueLimits
from pipeline.models import ModelEntry, Models
from pipeline.store import Database, settlement
from pipeline.store.submission import NewJob
from schemas.errors import QueueSaturated
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import batch, report, take

ENTRY = {"name": "m", "kinds": ("intent",), "port": 1}


def limits(database: Database, **fields: Any) -> QueueLimits:
    return QueueLimits(Models({"m": ModelEntry.model_validate({**ENTRY, **fields})}), database)


def came(gate: QueueLimits, jobs: list[NewJob], tenant: str) -> None:
    """A batch that was stored."""
    with gate.reserve_batch(jobs, tenant) as admit:
        admit()


def job(tenant: str = "default") -> NewJob:
    return NewJob("intent", tenant, b"{}", "m", 0)


async def test_a_batch_that_does_not_fit_is_refused_with_depth_and_when_to_come_again(database: Database) -> None:
    await batch(database, 60)
    claim = await take(database)
    assert claim is not None
    await settlement.settle(database, [report(claim)])
    gate = limits(database, max_queued_bulk=100)
    await gate.refresh()
    came(gate, [job()] * 40, "default")
    with pytest.raises(QueueSaturated, match=r"m\.bulk holds 90 jobs and takes 100; submit again in \d+ s") as raised:
        came(gate, [job()] * 20, "default")
    assert raised.value.retryable
    facts = raised.value.facts
    assert (facts["queue"], facts["depth"], facts["limit"]) == ("m.bulk", 90, 100)
    assert facts["retry_after_seconds"] == 60, "ten jobs too many, ten were finished in the last minute"


async def test_a_batch_that_never_fits_is_told_so(database: Database) -> None:
    gate = limits(database, max_queued_bulk=100)
    await gate.refresh()
    with pytest.raises(QueueSaturated, match="takes 100 jobs and 101 came at once") as raised:
        came(gate, [job()] * 101, "default")
    assert "retry_after_seconds" not in raised.value.facts


async def test_a_tenant_has_its_share_and_leaves_the_rest_to_others(database: Database) -> None:
    await batch(database, 45, tenant="loud")
    gate = limits(database, max_queued_bulk=100, max_tenant_share=0.5)
    await gate.refresh()
    with pytest.raises(QueueSaturated, match="holds 45 jobs of tenant loud and takes 50"):
        came(gate, [job()] * 10, "loud")
    came(gate, [job()] * 50, "quiet")


async def test_the_lanes_have_limits_of_their_own_and_what_runs_does_not_count(database: Database) -> None:
    await batch(database, 10)
    gate = limits(database, max_queued_bulk=10, max_queued_interactive=2)
    await gate.refresh()
    assert [gate.admit_one(job()) is None for _ in range(3)] == [True, True, False]
    with pytest.raises(QueueSaturated):
        came(gate, [job()], "default")
    assert await take(database) is not None
    gate = limits(database, max_queued_bulk=10)
    await gate.refresh()
    came(gate, [job()] * 10, "default")


@pytest.fixture
async def narrow(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncClient]:
    """A client of a model that takes three interactive jobs and five in bulk."""
    file = sandbox.home / "models.toml"
    file.write_text('[models.chatglm3-6b]\nkinds = ["intent"]\nport = 1\nqueued_interactive = 3\nqueued_bulk = 5\n')
    monkeypatch.setenv("YYC3_MODELS_FILE", str(file))
    async with AsyncClient(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:
        yield client


async def test_a_submit_is_refused_and_one_with_a_known_key_is_not(narrow: AsyncClient, sandbox: Sandbox) -> None:
    text = {"kind": "intent", "text": "我要退款"}
    first = await narrow.submit({**text, "idempotency_key": "a"})
    for _ in range(2):
        await narrow.submit(text)
    with pytest.raises(QueueSaturated):
        await narrow.submit(text)
    assert await narrow.submit({**text, "idempotency_key": "a"}) == first
    batch_id = (await narrow.submit_many([text] * 5, idempotency_key="b")).batch_id
    with pytest.raises(QueueSaturated):
        await narrow.submit_many([text])
    assert (await narrow.submit_many([text] * 5, idempotency_key="b")).batch_id == batch_id
    assert sandbox.query("SELECT count(*) FROM jobs") == [(8,)]
    refused = sandbox.yyc3(
        "submit", "intent", "--text", "我要退款", check=3, YYC3_MODELS_FILE=str(sandbox.home / "models.toml")
    )
    assert "submit again in" in refused.stderr


def test_limits_are_numbers_above_zero() -> None:
    for fields in ({"max_queued_bulk": 0}, {"max_tenant_share": 0}, {"max_tenant_share": 1.5}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            ModelEntry.model_validate({**ENTRY, **fields})


async def test_a_batch_that_is_still_being_stored_counts_and_one_that_was_not_stored_does_not(
    database: Database,
) -> None:
    gate = limits(database, max_queued_bulk=100)
    await gate.refresh()
    with gate.reserve_batch([job()] * 80, "default") as admit:
        admit()
        gate._looked_at = None
        await gate.refresh()  # it is in no table yet
        with pytest.raises(QueueSaturated, match="holds 80 jobs"):
            came(gate, [job()] * 30, "default")
    with pytest.raises(ZeroDivisionError), gate.reserve_batch([job()] * 20, "default") as admit:
        admit()
        _ = 1 / 0
    came(gate, [job()] * 20, "default")
