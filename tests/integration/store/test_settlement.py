"""Settlements: each job once, whoever writes and however often."""

from datetime import timedelta
from uuid import uuid4

import pytest

from pipeline import kinds
from pipeline.local.client import SupervisorClient
from pipeline.store import Database, claims, leases, recovery, settlement
from pipeline.store.settlement import ChunkState, FailedAttempt, SettledRow, Settlement
from schemas.errors import ErrorCode, UnstorableValue
from schemas.results import JobState, SentimentLabel, SentimentResult
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import (
    EXPIRED,
    LEASE,
    claim_next,
    claim_queued,
    requeue_expired,
    store_batch,
    succeeded,
)

# xmin is the transaction that wrote a row: another one would show that the row was written again.
_WRITTEN = "SELECT job_id, xmin::text, settled_at FROM outcomes ORDER BY job_id"


async def test_a_second_delivery_of_a_settled_chunk_changes_nothing(database: Database, sandbox: Sandbox) -> None:
    stored = await store_batch(database, 10)
    claim = await claim_queued(database)
    assert (await settlement.settle(database, [succeeded(claim)])).written == {(claim.first_job_id, claim.fence)}
    before = sandbox.query(_WRITTEN)
    assert (await settlement.settle(database, [succeeded(claim)])).written == set()
    assert await claims.claim_named(database, [(stored.chunks[0].first_job_id, uuid4())], worker="w", lease=LEASE) == {}
    assert sandbox.query(_WRITTEN) == before
    assert sandbox.query("SELECT succeeded, prompt_tokens, completion_tokens, state FROM chunks") == [
        (10, 30, 10, "done")
    ]


async def test_a_run_that_lost_its_chunk_writes_nothing(database: Database, sandbox: Sandbox) -> None:
    await store_batch(database, 1)
    slow = await claim_queued(database, lease=EXPIRED)
    assert await requeue_expired(database) == (1, [])
    other = await claim_queued(database)
    assert (await settlement.settle(database, [succeeded(slow)])).written == set()
    assert sandbox.query("SELECT count(*) FROM outcomes") == [(0,)]
    assert (await settlement.settle(database, [succeeded(other)])).written == {(other.first_job_id, other.fence)}
    assert await leases.renew(database, [slow.run_id, other.run_id], LEASE) == {}


async def test_a_stale_settlement_beside_the_current_one_changes_nothing(database: Database, sandbox: Sandbox) -> None:
    await store_batch(database, 4)
    stale = await claim_queued(database, lease=EXPIRED)
    sandbox.query("UPDATE chunks SET state = 'queued'")
    fresh = await claim_queued(database)
    held = (
        await settlement.settle(database, [succeeded(stale, next_state=ChunkState.QUEUED), succeeded(fresh)])
    ).written
    assert held == {(fresh.first_job_id, fresh.fence)}
    assert sandbox.query("SELECT succeeded, state FROM chunks") == [(4, "done")]


async def test_a_chunk_requeued_with_a_delay_waits_and_keeps_its_failures(database: Database, sandbox: Sandbox) -> None:
    await store_batch(database, 2)
    claim = await claim_queued(database)
    failure = FailedAttempt(claim.jobs[0].job_id, 0, "default", 1, ErrorCode.ENGINE_FAILED, "http://e")
    later = Settlement(
        claim.first_job_id,
        claim.fence,
        (),
        (failure,),
        ChunkState.QUEUED,
        timedelta(minutes=1),
        True,
        ErrorCode.ENGINE_FAILED,
    )
    await settlement.settle(database, [later])
    assert await claim_next(database) is None
    assert await recovery.runnable_chunks(database) == []
    sandbox.query("UPDATE chunks SET due_at = now()")
    again = await claim_queued(database)
    assert [job.failed_attempts for job in again.jobs] == [1, 0]
    assert again.rounds == 1


@pytest.mark.parametrize("column", ["message", "label", "endpoint"])
async def test_a_value_that_cannot_be_stored_is_refused_and_not_quoted(
    servers: SupervisorClient, database: Database, sandbox: Sandbox, column: str
) -> None:
    await store_batch(database, 1)
    claim = await claim_queued(database)
    row = SettledRow(claim.jobs[0].job_id, 0, "default", "intent", JobState.SUCCEEDED, b'{"kind":"intent","label":"x"}')
    setattr(row, column, "CANARY \x00")
    with pytest.raises(UnstorableValue) as raised:
        await settlement.settle(database, [Settlement(claim.first_job_id, claim.fence, [row])])
    assert "CANARY" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert sandbox.query("SELECT count(*) FROM outcomes") == [(0,)]
    assert "CANARY" not in (servers.folder / "postgres.log").read_text(), "Postgres must not log values"


@pytest.mark.parametrize("score", [1e-40, -1e-50, 5e-324])
async def test_a_score_too_small_for_its_column_is_stored(database: Database, sandbox: Sandbox, score: float) -> None:
    """The columns have single precision; a probability of the engine may be smaller than that has."""
    await store_batch(database, 1)
    claim = await claim_queued(database)
    result = SentimentResult(label=SentimentLabel.NEUTRAL, score=score, confidence=abs(score))
    found = kinds.measures(result)
    row = SettledRow(claim.jobs[0].job_id, 0, "default", "sentiment", JobState.SUCCEEDED)
    row.score, row.confidence = found.score, found.confidence
    done = Settlement(claim.first_job_id, claim.fence, [row], next_state=ChunkState.DONE)
    assert (await settlement.settle(database, [done])).written == {(claim.first_job_id, claim.fence)}
    assert sandbox.query("SELECT score, confidence FROM outcomes") == [
        (pytest.approx(score, abs=1e-6), pytest.approx(abs(score), abs=1e-6))
    ]
