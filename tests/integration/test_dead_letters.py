"""Dead letters: listed, replayed as the next replay, discarded; history stays, and nobody's rows run twice."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.operations.dead_letters import decide
from pipeline.store import Database, dead_letters, queries, queue_depths, recovery, settlement, submission
from pipeline.store.dead_letters import DeadLetterFilter, Decision
from pipeline.store.ids import JobIds
from pipeline.store.settlement import ChunkState
from pipeline.store.submission import StoredBatch
from schemas.doorbells import Lane
from schemas.errors import ErrorCode
from schemas.ids import JobId
from schemas.results import JobState
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import batch, failed, new, report, take

ALL = DeadLetterFilter()


async def some_failed(database: Database, jobs: int = 30, code: ErrorCode = ErrorCode.INVALID_OUTPUT) -> StoredBatch:
    """A batch in chunks of ten; each chunk's first two rows succeed and its others fail."""
    stored = await batch(database, jobs)
    while claim := await take(database):
        good = report(claim, rows=2)
        await settlement.settle(
            database,
            [
                type(good)(
                    claim.first_job_id,
                    claim.fence,
                    [*good.rows, *failed(claim, code).rows[2:]],
                    next_state=good.next_state,
                )
            ],
        )
    return stored


async def decided(
    database: Database, letters: DeadLetterFilter, decision: Decision, per_second: float = 1e6
) -> tuple[int, int]:
    *_, last = [progress async for progress in decide(database, letters, decision, per_second=per_second)]
    return last.decided, last.busy


async def test_they_are_grouped_and_filtered(database: Database) -> None:
    one, other = await some_failed(database), await some_failed(database, 10, ErrorCode.PROMPT_TOO_LONG)
    groups = await dead_letters.group_dead_letters(database, ALL)
    assert [(group.code, group.model, group.jobs) for group in groups] == [
        (ErrorCode.INVALID_OUTPUT, "m", 24),
        (ErrorCode.PROMPT_TOO_LONG, "m", 8),
    ]
    now = datetime.now(UTC)
    for letters, expected in (
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
        assert sum(group.jobs for group in await dead_letters.group_dead_letters(database, letters)) == expected, (
            letters
        )
    (newest, *_) = await dead_letters.list_dead_letters(database, ALL, 5)
    assert (newest.job_id, newest.code, newest.replay) == (other.job_ids[-1], ErrorCode.PROMPT_TOO_LONG, 1)


async def test_a_replay_runs_the_failed_rows_alone_and_their_history_stays(
    database: Database, sandbox: Sandbox
) -> None:
    stored = await some_failed(database)
    dead = [job_id for i, job_id in enumerate(stored.job_ids) if i % 10 >= 2]
    before = sandbox.query("SELECT job_id, replay, state, xid::text FROM outcomes ORDER BY job_id")
    assert await decided(database, ALL, Decision.REPLAYED) == (24, 0)
    assert await dead_letters.group_dead_letters(database, ALL) == []
    progress = await queries.batch_progress(database, stored.batch_id)
    assert (progress.succeeded, progress.failed, progress.finished) == (6, 0, False)
    found = await queries.outcomes_of(database, list(stored.job_ids))
    assert {job_id for job_id, outcome in found.items() if outcome.state is JobState.QUEUED} == set(dead)
    listed = await queries.recent_jobs(database, state=JobState.QUEUED, kind=None, limit=100)
    assert {outcome.job_id for outcome in listed} == set(dead)
    assert await queries.recent_jobs(database, state=JobState.FAILED, kind=None, limit=100) == []
    ran: list[JobId] = []
    while claim := await take(database):
        assert {job.replay for job in claim.jobs} == {2}
        assert max(job.queue_wait_seconds for job in claim.jobs) < 30, "since the replay"
        assert max(job.failed_attempts for job in claim.jobs) == 0
        ran += [job.job_id for job in claim.jobs]
        await settlement.settle(database, [report(claim)])
    assert sorted(ran) == dead
    progress = await queries.batch_progress(database, stored.batch_id)
    assert (progress.succeeded, progress.failed, progress.finished) == (30, 0, True)
    after = sandbox.query("SELECT job_id, replay, state, xid::text FROM outcomes WHERE replay = 1 ORDER BY job_id")
    assert after == before
    history = [(one.replay, one.what) for one in await dead_letters.history(database, dead[0])]
    assert history == [(1, "failed"), (1, "replayed"), (2, "succeeded")]


async def test_what_fails_again_is_a_dead_letter_again(database: Database) -> None:
    stored = await some_failed(database, 10)
    for replay in (2, 3):
        assert await decided(database, ALL, Decision.REPLAYED) == (8, 0)
        claim = await take(database)
        assert claim is not None
        assert {job.replay for job in claim.jobs} == {replay}
        await settlement.settle(database, [failed(claim, ErrorCode.ENGINE_FAILED)])
        (group,) = await dead_letters.group_dead_letters(database, ALL)
        assert (group.code, group.jobs) == (ErrorCode.ENGINE_FAILED, 8)
        progress = await queries.batch_progress(database, stored.batch_id)
        assert (progress.succeeded, progress.failed) == (2, 8)


async def test_discarded_ones_stay_failed_and_are_listed_no_more(database: Database, sandbox: Sandbox) -> None:
    stored = await some_failed(database)
    assert await decided(database, DeadLetterFilter(job_id=stored.job_ids[5]), Decision.DISCARDED) == (1, 0)
    assert await decided(database, DeadLetterFilter(job_id=stored.job_ids[5]), Decision.REPLAYED) == (0, 0)
    assert sum(group.jobs for group in await dead_letters.group_dead_letters(database, ALL)) == 23
    assert (await queries.outcomes_of(database, [stored.job_ids[5]]))[stored.job_ids[5]].state is JobState.FAILED
    assert sandbox.query("SELECT count(*) FROM chunks WHERE state = 'queued'") == [(0,)]


async def test_several_people_at_once_replay_each_letter_once(database: Database, sandbox: Sandbox) -> None:
    await some_failed(database, 1_000)
    done = await asyncio.gather(*[decided(database, ALL, Decision.REPLAYED) for _ in range(4)])
    assert sum(letters for letters, _ in done) == 800
    assert sandbox.query("SELECT sum(succeeded), sum(failed), count(*) FROM chunks") == [(200, 0, 100)]
    runs = 0
    while claim := await take(database):
        runs += len(claim.jobs)
        await settlement.settle(database, [report(claim)])
    assert runs == 800


async def test_a_replay_keeps_its_rate_and_stops_half_way(database: Database, sandbox: Sandbox) -> None:
    await some_failed(database, 100)
    task = asyncio.create_task(decided(database, ALL, Decision.REPLAYED, per_second=20))
    async with asyncio.timeout(10):
        while sandbox.query("SELECT count(*) FROM dead_letter_decisions")[0][0] < 20:  # noqa: ASYNC110 - another connection's writes
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    stopped = sandbox.query("SELECT count(*) FROM dead_letter_decisions")[0][0]
    assert 20 <= stopped < 80
    assert sum(group.jobs for group in await dead_letters.group_dead_letters(database, ALL)) == 80 - stopped
    assert await decided(database, ALL, Decision.REPLAYED) == (80 - stopped, 0)


async def test_letters_of_a_chunk_that_runs_are_left_alone_and_counted(database: Database) -> None:
    await batch(database, 10)
    claim = await take(database)
    assert claim is not None
    some = failed(claim)
    await settlement.settle(database, [type(some)(claim.first_job_id, claim.fence, some.rows[:4])])
    assert await decided(database, ALL, Decision.REPLAYED) == (0, 4)
    await settlement.settle(
        database, [type(some)(claim.first_job_id, claim.fence, some.rows[4:], next_state=some.next_state)]
    )
    assert await decided(database, ALL, Decision.REPLAYED) == (10, 0)


async def test_interactive_jobs_are_replayed_as_bulk(database: Database) -> None:
    await submission.insert_interactive(
        database, JobIds(database), [new(), new()], reply_to="yyc3.settled.x", chunk_rows=64, admit=lambda _: None
    )
    claim = await take(database, Lane.INTERACTIVE)
    assert claim is not None
    await settlement.settle(database, [failed(claim)])
    assert await decided(database, ALL, Decision.REPLAYED) == (2, 0)
    assert await take(database, Lane.INTERACTIVE) is None
    again = await take(database, Lane.BULK)
    assert again is not None
    assert (len(again.jobs), again.reply_to) == (2, None)


async def test_a_replayed_job_can_be_cancelled(database: Database) -> None:
    stored = await some_failed(database, 10)
    await decided(database, ALL, Decision.REPLAYED)
    cancelled = await settlement.cancel(database, stored.job_ids[9])
    assert cancelled is not None
    assert cancelled[0]
    claim = await take(database)
    assert claim is not None
    assert [job.job_id for job in claim.jobs] == list(stored.job_ids[2:9])
    await settlement.settle(database, [report(claim)])
    progress = await queries.batch_progress(database, stored.batch_id)
    assert (progress.succeeded, progress.cancelled, progress.finished) == (9, 1, True)


@pytest.mark.parametrize("option", [["--since", "yesterday"], ["--code", "nonsense"], []])
def test_the_command_says_what_it_needs(sandbox: Sandbox, option: list[str]) -> None:
    said = sandbox.yyc3("dead-letters", "replay", *option, check=2)
    assert "Traceback" not in said.stderr
    assert option == [] or option[1] in said.stderr


async def test_a_letter_whose_chunk_is_halved_meanwhile_is_left_for_the_next_time(
    database: Database, sandbox: Sandbox
) -> None:
    """Its half may be in another worker's hands already, who does not know of the replay."""
    stored = await batch(database, 4)
    claim = await take(database)
    assert claim is not None
    some = failed(claim)
    back = type(some)(claim.first_job_id, claim.fence, some.rows[3:], next_state=ChunkState.QUEUED)
    await settlement.settle(database, [back])
    async with database.transaction() as connection:
        await connection.execute("UPDATE chunks SET rows = 2, state = 'queued', fence = fence + 1")
        await connection.execute(
            """INSERT INTO chunks (first_job_id, rows, batch_id, model, lane, state, run_id, fence)
               SELECT first_job_id + 2, 2, batch_id, model, lane, 'running', gen_random_uuid(), fence FROM chunks"""
        )
        deciding = asyncio.create_task(decided(database, ALL, Decision.REPLAYED))
        async with asyncio.timeout(10):
            while not sandbox.query("SELECT 1 FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110 - another connection's lock
                await asyncio.sleep(0.01)
    assert await deciding == (0, 1)
    assert sum(group.jobs for group in await dead_letters.group_dead_letters(database, ALL)) == 1
    assert stored.job_ids[3] in await queries.outcomes_of(database, list(stored.job_ids))


async def test_a_letter_past_its_deadline_is_not_replayed_and_one_before_it_expires_in_time(
    database: Database, sandbox: Sandbox
) -> None:
    stored = await some_failed(database, 10)
    sandbox.query("UPDATE jobs SET deadline = now() - interval '1 s' WHERE job_id = %s", stored.job_ids[5])
    sandbox.query("UPDATE jobs SET deadline = now() + interval '1 s' WHERE job_id = %s", stored.job_ids[6])
    assert await decided(database, ALL, Decision.REPLAYED) == (7, 0)
    (left,) = await dead_letters.list_dead_letters(database, ALL, 5)
    assert left.job_id == stored.job_ids[5]
    async with asyncio.timeout(10):
        while not await recovery.expire(database):  # noqa: ASYNC110 - the database's clock
            await asyncio.sleep(0.1)
    found = await queries.outcomes_of(database, [stored.job_ids[6]])
    assert found[stored.job_ids[6]].state is JobState.EXPIRED


async def test_a_replay_of_few_rows_is_a_queue_of_few_rows(database: Database) -> None:
    stored = await some_failed(database, 10)
    await decided(database, DeadLetterFilter(job_id=stored.job_ids[9]), Decision.REPLAYED)
    ((_, depth),) = (await queue_depths.queued(database)).items()
    assert depth.jobs == 1
    (state,) = await queries.queue_states(database)
    assert state.queued_jobs == 1
