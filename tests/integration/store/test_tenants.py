"""Every row has the tenant of its job, whoever writes it."""

from uuid import UUID

import pytest

from pipeline.store import Database, cancellation, dead_letters, recovery, reply_outbox, settlement
from pipeline.store.dead_letters import DeadLetterFilter, Decision
from pipeline.store.reply_outbox import PendingReply
from pipeline.store.settlement import FailedAttempt, Settlement
from schemas.doorbells import Lane
from schemas.errors import ErrorCode
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import (
    EXPIRED,
    claim_next,
    claim_queued,
    failed,
    new_job,
    requeue_expired,
    store_batch,
    store_jobs,
    succeeded,
)

TENANTS = ["shop", "bank", "default"]


async def store_one_of_each_tenant(database: Database, *, batch_tenant: str | None) -> None:
    """Store a job of each tenant: interactive, or in one batch of `batch_tenant`."""
    jobs = [new_job(tenant=tenant) for tenant in TENANTS]
    if batch_tenant is None:
        await store_jobs(database, jobs)
    else:
        await store_batch(database, jobs, tenant=batch_tenant)


def lane_of(batch_tenant: str | None) -> Lane:
    return Lane.INTERACTIVE if batch_tenant is None else Lane.BULK


def rows_with_a_wrong_tenant(sandbox: Sandbox, table: str) -> tuple[int, int]:
    """Count the rows of a table, and those whose tenant is not that of their job."""
    (found,) = sandbox.query(
        f"SELECT count(*), count(*) FILTER (WHERE t.tenant <> j.tenant) FROM {table} t JOIN jobs j USING (job_id)"
    )
    return found[0], found[1]


both_ways_in = pytest.mark.parametrize("batch_tenant", [None, "shop"], ids=["interactive", "batch of shop"])


@both_ways_in
async def test_outcomes_that_a_run_settles_have_the_tenant_of_their_job(
    database: Database, sandbox: Sandbox, batch_tenant: str | None
) -> None:
    await store_one_of_each_tenant(database, batch_tenant=batch_tenant)
    while claim := await claim_next(database, lane_of(batch_tenant)):
        await settlement.settle(database, [succeeded(claim)])
    assert rows_with_a_wrong_tenant(sandbox, "outcomes") == (3, 0)
    assert sandbox.query("SELECT DISTINCT kind FROM outcomes") == [("intent",)]


@both_ways_in
async def test_cached_answers_have_the_tenant_of_their_job(
    database: Database, sandbox: Sandbox, batch_tenant: str | None
) -> None:
    await store_one_of_each_tenant(database, batch_tenant=batch_tenant)
    while claim := await claim_next(database, lane_of(batch_tenant)):
        settled = succeeded(claim)
        for row in settled.rows:
            row.cache_key = UUID(int=row.job_id)
        await settlement.settle(database, [settled])
    assert rows_with_a_wrong_tenant(sandbox, "answer_cache") == (3, 0)


@both_ways_in
async def test_failed_attempts_and_decisions_have_the_tenant_of_their_job(
    database: Database, sandbox: Sandbox, batch_tenant: str | None
) -> None:
    await store_one_of_each_tenant(database, batch_tenant=batch_tenant)
    while claim := await claim_next(database, lane_of(batch_tenant)):
        dead = failed(claim, ErrorCode.ENGINE_FAILED)
        attempts = [FailedAttempt(job.job_id, 0, job.tenant, 1, ErrorCode.ENGINE_FAILED, None) for job in claim.jobs]
        settled = Settlement(claim.first_job_id, claim.fence, dead.rows, attempts, next_state=dead.next_state)
        await settlement.settle(database, [settled])
    assert rows_with_a_wrong_tenant(sandbox, "failed_attempts") == (3, 0)
    page = await dead_letters.decide(database, DeadLetterFilter(), Decision.DISCARDED, after=None, limit=10)
    assert page.decided == 3
    assert rows_with_a_wrong_tenant(sandbox, "dead_letter_decisions") == (3, 0)


async def test_dead_letters_are_found_by_the_tenant_of_their_job(database: Database) -> None:
    await store_one_of_each_tenant(database, batch_tenant=None)
    while claim := await claim_next(database, Lane.INTERACTIVE):
        await settlement.settle(database, [failed(claim)])
    for tenant in TENANTS:
        found = await dead_letters.list_dead_letters(database, DeadLetterFilter(tenant=tenant), 10)
        assert [letter.tenant for letter in found] == [tenant]


@both_ways_in
async def test_outcomes_without_a_run_have_tenant_and_kind_of_their_job(
    database: Database, sandbox: Sandbox, batch_tenant: str | None
) -> None:
    """A job of each tenant is cancelled, then one expires, then one is failed as poison."""
    await store_one_of_each_tenant(database, batch_tenant=batch_tenant)
    for (job_id,) in sandbox.query("SELECT job_id FROM jobs"):
        await cancellation.cancel(database, job_id)
    await store_one_of_each_tenant(database, batch_tenant=batch_tenant)
    for table in ("jobs", "chunks"):
        sandbox.query(f"UPDATE {table} SET deadline = now() - interval '1 s'")
    assert len(await recovery.expire(database)) == 3
    sandbox.query("UPDATE chunks SET state = 'done'")
    for tenant in TENANTS:
        await store_batch(database, [new_job(tenant=tenant)], tenant=batch_tenant or tenant)
    for _ in TENANTS:
        for _ in range(3):
            await claim_queued(database, lease=EXPIRED)
            await requeue_expired(database)
    assert rows_with_a_wrong_tenant(sandbox, "outcomes") == (9, 0)
    assert sandbox.query("SELECT state, kind, count(*) FROM outcomes GROUP BY state, kind ORDER BY state") == [
        ("cancelled", "intent", 3),
        ("expired", "intent", 3),
        ("failed", "intent", 3),
    ]


async def test_pending_replies_have_the_tenant_they_are_enqueued_with(database: Database, sandbox: Sandbox) -> None:
    stored = await store_jobs(database, [new_job(tenant="shop"), new_job(tenant="shop")])
    replies = [PendingReply(entry, "crm", "shop", "k") for entry in stored.entries if isinstance(entry, int)]
    await reply_outbox.enqueue(database, replies)
    assert rows_with_a_wrong_tenant(sandbox, "reply_outbox") == (2, 0)
    await settlement.settle(database, [succeeded(await claim_queued(database, Lane.INTERACTIVE))])
    async with reply_outbox.claim_due(database, [reply.job_id for reply in replies]) as (due, _):
        assert due == replies
