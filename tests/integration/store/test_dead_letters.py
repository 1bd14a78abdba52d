"""Dead letters: listed, replayed with the next replay number, or discarded; their history stays."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.operations.dead_letters import discard, replay
from pipeline.store import (
    Database,
    cancellation,
    dead_letters,
    job_records,
    queries,
    queue_depths,
    recovery,
    settlement,
)
from pipeline.store.batches import StoredBatch, batch_progress
from pipeline.store.dead_letters import DeadLetterFilter
from pipeline.store.settlement import ChunkState, Settlement
from schemas.doorbells import Lane
from schemas.errors import ErrorCode
from schemas.ids import JobId
from schemas.results import JobState
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import (
    claim_next,
    claim_queued,
    failed,
    new_job,
    store_batch,
    store_jobs,
    succeeded,
)

ALL = DeadLetterFilter()
QUICKLY = 1e6


async def store_failed(database: Database, jobs: int = 30, code: ErrorCode = ErrorCode.INVALID_OUTPUT) -> StoredBatch:
    """Store a batch in chunks of ten; the first two rows of each chunk succeed and the others fail."""
    stored = await store_batch(database, jobs)
    while claim := await claim_next(database):
        good = succeeded(claim, rows=2)
        await settlement.settle(database, [replace(good, rows=[*good.rows, *failed(claim, code).rows[2:]])])
    return stored


async def replay_all(
    database: Database, selected: DeadLetterFilter = ALL, per_second: float = QUICKLY
) -> tuple[int, int]:
    """Replay dead letters; returns how many were replayed, and how many were skipped as busy."""
    *_, last = [progress async for progress in replay(database, selected, per_second=per_second)]
    return last.decided, last.busy


async def discard_all(database: Database, selected: DeadLetterFilter = ALL) -> tuple[int, int]:
    """Discard dead letters; returns how many were discarded, and how many were skipped as busy."""
    *_, last = [progress async for progress in discard(database, selected)]
    return last.decided, last.busy


async def count(database: Database, selected: DeadLetterFilter = ALL) -> int:
    """Count the selected dead letters."""
    return sum(group.jobs for group in await dead_letters.group_dead_letters(database, selected))


async def test_dead_letters_are_grouped_and_filtered(database: Database) -> None:
    one, other = await store_failed(database), await store_failed(database, 10, ErrorCode.PROMPT_TOO_LONG)
    groups = await dead_letters.group_dead_letters(database, ALL)
    assert [(group.code, group.model, group.jobs) for group in groups] == [
        (ErrorCode.INVALID_OUTPUT, "m", 24),
        (ErrorCode.PROMPT_TOO_LONG, "m", 8),
    ]
    now = datetime.now(UTC)
    for selected, expected in (
        (DeadLetterFilter(code=ErrorCode.PROMPT_TOO_LONG), 8),
        (DeadLetterFilter(model="m"), 32),
        (DeadLetterFilter(model="n"), 0),
        (DeadLetterFilter(tenant="default"), 32),
        (DeadLetterFilter(tenant="t"), 0),
        (DeadLetterFilter(batch_id=one.batch_id), 24),
        (DeadLetterFilter(batch_id=other.batch_id, code=ErrorCode.INVALID_OUTPUT), 0),
        (DeadLetterFilter(since=now - timedelta(minutes=1)), 32),
        (DeadLetterFilter(since=now + timedelta(minutes=1)), 0),
        (DeadLetterFilter(until=now - timedelta(minutes=1)), 0),
        (DeadLetterFilter(job_id=one.job_ids[2]), 1),
        (DeadLetterFilter(job_id=one.job_ids[0]), 0),
    ):
        assert await count(database, selected) == expected, selected
    (newest, *_) = await dead_letters.list_dead_letters(database, ALL, 5)
    assert (newest.job_id, newest.code, newest.replay) == (other.job_ids[-1], ErrorCode.PROMPT_TOO_LONG, 0)


async def test_a_replay_runs_only_the_failed_rows_and_keeps_their_history(database: Database, sandbox: Sandbox) -> None:
    stored = await store_failed(database)
    dead = [job_id for i, job_id in enumerate(stored.job_ids) if i % 10 >= 2]
    before = sandbox.query("SELECT job_id, replay, state, xmin::text FROM outcomes ORDER BY job_id")
    assert await replay_all(database) == (24, 0)
    assert await dead_letters.group_dead_letters(database, ALL) == []
    progress = await batch_progress(database, stored.batch_id)
    assert (progress.succeeded, progress.failed, progress.finished) == (6, 0, False)
    found = await queries.outcomes_of(database, list(stored.job_ids))
    assert {job_id for job_id, outcome in found.items() if outcome.state is JobState.QUEUED} == set(dead)
    listed = await queries.recent_jobs(database, state=JobState.QUEUED, kind=None, limit=100)
    assert {outcome.job_id for outcome in listed} == set(dead)
    assert await queries.recent_jobs(database, state=JobState.FAILED, kind=None, limit=100) == []
    ran: list[JobId] = []
    while claim := await claim_next(database):
        assert {job.replay for job in claim.jobs} == {1}
        assert max(job.queue_wait_seconds for job in claim.jobs) < 30, "since the replay"
        assert max(job.failed_attempts for job in claim.jobs) == 0
        ran += [job.job_id for job in claim.jobs]
        await settlement.settle(database, [succeeded(claim)])
    assert sorted(ran) == dead
    progress = await batch_progress(database, stored.batch_id)
    assert (progress.succeeded, progress.failed, progress.finished) == (30, 0, True)
    after = sandbox.query("SELECT job_id, replay, state, xmin::text FROM outcomes WHERE replay = 0 ORDER BY job_id")
    assert after == before
    history = [(one.replay, one.what) for one in await job_records.history(database, dead[0])]
    assert history == [(0, "failed"), (0, "replayed"), (1, "succeeded")]


async def test_a_replayed_job_that_fails_is_a_dead_letter_again(database: Database) -> None:
    stored = await store_failed(database, 10)
    for number in (1, 2):
        assert await replay_all(database) == (8, 0)
        claim = await claim_queued(database)
        assert {job.replay for job in claim.jobs} == {number}
        await settlement.settle(database, [failed(claim, ErrorCode.ENGINE_FAILED)])
        (group,) = await dead_letters.group_dead_letters(database, ALL)
        assert (group.code, group.jobs) == (ErrorCode.ENGINE_FAILED, 8)
        progress = await batch_progress(database, stored.batch_id)
        assert (progress.succeeded, progress.failed) == (2, 8)


async def test_discarded_dead_letters_stay_failed_and_are_not_listed(database: Database, sandbox: Sandbox) -> None:
    stored = await store_failed(database)
    assert await discard_all(database, DeadLetterFilter(job_id=stored.job_ids[5])) == (1, 0)
    assert await replay_all(database, DeadLetterFilter(job_id=stored.job_ids[5])) == (0, 0)
    assert await count(database) == 23
    assert (await queries.outcomes_of(database, [stored.job_ids[5]]))[stored.job_ids[5]].state is JobState.FAILED
    assert sandbox.query("SELECT count(*) FROM chunks WHERE state = 'queued'") == [(0,)]


async def test_replays_at_once_replay_each_dead_letter_once(database: Database, sandbox: Sandbox) -> None:
    await store_failed(database, 1_000)
    done = await asyncio.gather(*[replay_all(database) for _ in range(4)])
    assert sum(replayed for replayed, _ in done) == 800
    assert sandbox.query("SELECT sum(succeeded), sum(failed), count(*) FROM chunks") == [(200, 0, 100)]
    runs = 0
    while claim := await claim_next(database):
        runs += len(claim.jobs)
        await settlement.settle(database, [succeeded(claim)])
    assert runs == 800


async def test_a_replay_keeps_its_rate_and_can_be_interrupted(database: Database, sandbox: Sandbox) -> None:
    await store_failed(database, 100)
    started = time.monotonic()
    pages = replay(database, ALL, per_second=20)
    first, second = await anext(pages), await anext(pages)
    assert time.monotonic() - started >= first.decided / 20
    assert 20 <= first.decided < second.decided < 80
    third = asyncio.ensure_future(anext(pages))
    await asyncio.sleep(0)  # it sleeps until the rate allows the next page
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
    assert third.cancelled()
    assert sandbox.query("SELECT count(*) FROM dead_letter_decisions") == [(second.decided,)]
    assert await count(database) == 80 - second.decided
    assert await replay_all(database) == (80 - second.decided, 0)


async def test_dead_letters_of_a_running_chunk_are_skipped_and_counted(database: Database) -> None:
    await store_batch(database, 10)
    claim = await claim_queued(database)
    some = failed(claim)
    await settlement.settle(database, [Settlement(claim.first_job_id, claim.fence, some.rows[:4])])
    assert await replay_all(database) == (0, 4)
    await settlement.settle(
        database, [Settlement(claim.first_job_id, claim.fence, some.rows[4:], next_state=some.next_state)]
    )
    assert await replay_all(database) == (10, 0)


async def test_interactive_jobs_are_replayed_as_bulk(database: Database) -> None:
    await store_jobs(database, [new_job(), new_job()], reply_to="yyc3.settled.x")
    claim = await claim_queued(database, Lane.INTERACTIVE)
    await settlement.settle(database, [failed(claim)])
    assert await replay_all(database) == (2, 0)
    assert await claim_next(database, Lane.INTERACTIVE) is None
    again = await claim_queued(database, Lane.BULK)
    assert (len(again.jobs), again.reply_to) == (2, None)


async def test_a_replayed_job_can_be_cancelled(database: Database) -> None:
    stored = await store_failed(database, 10)
    await replay_all(database)
    cancelled = await cancellation.cancel(database, stored.job_ids[9])
    assert cancelled is not None
    assert cancelled[0]
    claim = await claim_queued(database)
    assert [job.job_id for job in claim.jobs] == list(stored.job_ids[2:9])
    await settlement.settle(database, [succeeded(claim)])
    progress = await batch_progress(database, stored.batch_id)
    assert (progress.succeeded, progress.cancelled, progress.finished) == (9, 1, True)


@pytest.mark.parametrize("option", [["--since", "yesterday"], ["--code", "nonsense"], []])
def test_the_command_names_the_option_that_is_wrong(sandbox: Sandbox, option: list[str]) -> None:
    done = sandbox.yyc3("dead-letters", "replay", *option, check=2)
    assert "Traceback" not in done.stderr
    assert option == [] or option[1] in done.stderr


async def test_a_dead_letter_whose_chunk_is_halved_meanwhile_is_skipped(database: Database) -> None:
    """Another worker may hold its half already, and does not know of the replay."""
    stored = await store_batch(database, 4)
    claim = await claim_queued(database)
    some = failed(claim)
    back = Settlement(claim.first_job_id, claim.fence, some.rows[3:], next_state=ChunkState.QUEUED)
    await settlement.settle(database, [back])
    async with database.transaction() as connection:
        await connection.execute("UPDATE chunks SET rows = 2, state = 'queued', fence = fence + 1")
        await connection.execute(
            """INSERT INTO chunks (first_job_id, rows, batch_id, tenant, model, lane, state, run_id, fence)
               SELECT first_job_id + 2, 2, batch_id, tenant, model, lane, 'running', gen_random_uuid(), fence FROM chunks"""
        )
        assert await replay_all(database) == (0, 1), "a chunk that is locked is not waited for"
    assert await replay_all(database) == (0, 1)
    assert await count(database) == 1
    assert stored.job_ids[3] in await queries.outcomes_of(database, list(stored.job_ids))


async def test_a_job_past_its_deadline_is_not_replayed(database: Database, sandbox: Sandbox) -> None:
    stored = await store_failed(database, 10)
    sandbox.query("UPDATE jobs SET deadline = now() - interval '1 s' WHERE job_id = %s", stored.job_ids[5])
    assert await replay_all(database) == (7, 0)
    (left,) = await dead_letters.list_dead_letters(database, ALL, 5)
    assert left.job_id == stored.job_ids[5]


async def test_a_replayed_job_expires_at_its_deadline(database: Database, sandbox: Sandbox) -> None:
    stored = await store_failed(database, 10)
    sandbox.query("UPDATE jobs SET deadline = now() + interval '1 hour' WHERE job_id = %s", stored.job_ids[6])
    assert await replay_all(database) == (8, 0)
    assert await recovery.expire(database) == []
    assert sandbox.query("SELECT c.deadline = j.deadline FROM chunks c, jobs j WHERE j.deadline IS NOT NULL") == [
        (True,)
    ]
    for table in ("jobs", "chunks"):
        sandbox.query(f"UPDATE {table} SET deadline = deadline - interval '1 hour' WHERE deadline IS NOT NULL")
    assert [expired.job_id for expired in await recovery.expire(database)] == [stored.job_ids[6]]
    found = await queries.outcomes_of(database, [stored.job_ids[6]])
    assert found[stored.job_ids[6]].state is JobState.EXPIRED


async def test_a_replay_of_one_row_is_a_queue_of_one_row(database: Database) -> None:
    stored = await store_failed(database, 10)
    await replay_all(database, DeadLetterFilter(job_id=stored.job_ids[9]))
    ((_, depth),) = (await queue_depths.queued(database)).items()
    assert depth.jobs == 1
    (state,) = await queries.queue_states(database)
    assert state.queued_jobs == 1
