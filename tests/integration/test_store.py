"""What the store promises, on a real Postgres."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.dialects.postgresql.base import ischema_names

from pipeline.local.client import SupervisorClient
from pipeline.store import Database, claims, queries, recovery, reply_outbox, settlement, submission
from pipeline.store.ids import BLOCK_JOBS, PARTITION_JOBS, JobIds
from pipeline.store.schema import migrate
from pipeline.store.schema.tables import metadata
from pipeline.store.settlement import ChunkState, FailedAttempt, SettledRow, Settlement
from pipeline.store.submission import Stored, StoredBatch
from schemas.doorbells import Lane
from schemas.errors import DuplicateJob, ErrorCode, StoreUnavailable, UnstorableValue
from schemas.ids import JobId
from schemas.results import JobState
from tests.support.sandbox import Sandbox, wait_for
from tests.support.store_helpers import GONE, LEASE, all_admitted, batch, lost, new, report, take


def test_the_tables_and_the_migrations_agree(sandbox: Sandbox) -> None:
    ischema_names["xid8"] = type(metadata.tables["outcomes"].c.xid.type)
    engine = sa.create_engine(migrate.sqlalchemy_url(sandbox.database_url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        differences = compare_metadata(context, metadata)
    assert differences == []


def test_upgrading_twice_changes_nothing(sandbox: Sandbox) -> None:
    assert migrate.upgrade(sandbox.database_url) == migrate.upgrade(sandbox.database_url) == "0004"


async def test_a_database_without_tables_says_what_to_run(sandbox: Sandbox) -> None:
    sandbox.query("DROP TABLE chunks")
    database = await Database(sandbox.database_url).open()
    with pytest.raises(StoreUnavailable, match="yyc3 db upgrade"):
        await queries.queue_states(database)
    await database.close()


async def test_jobs_of_a_batch_keep_their_order_and_their_bytes(database: Database, sandbox: Sandbox) -> None:
    stored = await batch(database, 25)
    assert list(stored.job_ids) == sorted(stored.job_ids)
    rows = sandbox.query("SELECT line, request::text FROM jobs ORDER BY job_id")
    assert rows == [(i, f'{{"kind":"intent",  "text":"row {i}"}}') for i in range(25)]
    assert [chunk.rows for chunk in stored.chunks] == [10, 10, 5]


async def test_ids_are_taken_in_blocks_and_never_twice(database: Database) -> None:
    ids, others = JobIds(database), JobIds(database)
    firsts = await ids.allocate([700, 700, 700]) + await others.allocate([5]) + await ids.allocate([300])
    taken = [first + k for first, count in zip(firsts, [700, 700, 700, 5, 300], strict=True) for k in range(count)]
    assert len(set(taken)) == len(taken)
    assert all(
        first // BLOCK_JOBS == (first + count - 1) // BLOCK_JOBS
        for first, count in zip(firsts, [700, 700, 700, 5, 300], strict=True)
    )


async def test_a_job_beyond_the_first_partition_finds_its_own(database: Database, sandbox: Sandbox) -> None:
    sandbox.query("SELECT setval('job_id_blocks', %s)", PARTITION_JOBS // BLOCK_JOBS + 3)
    stored = await batch(database, 3)
    assert stored.job_ids[0] >= PARTITION_JOBS
    claim = await take(database)
    assert claim is not None
    await settlement.settle(database, [report(claim)])
    assert sandbox.query("SELECT count(*) FROM outcomes_1") == [(3,)]


async def test_the_same_key_with_the_same_job_is_that_job_and_with_another_is_refused(database: Database) -> None:
    ids = JobIds(database)
    first = (
        await submission.insert_interactive(
            database, ids, [new(key="k")], reply_to=None, chunk_rows=64, admit=all_admitted
        )
    )[0]
    again, other, free = await submission.insert_interactive(
        database,
        ids,
        [new(key="k"), new(key="k", payload=b"q"), new()],
        reply_to=None,
        chunk_rows=64,
        admit=all_admitted,
    )
    assert isinstance(first, Stored)
    assert isinstance(again, Stored)
    assert isinstance(free, Stored)
    assert again.job_ids == first.job_ids
    assert again.chunks == []
    assert isinstance(other, DuplicateJob)
    assert str(first.job_ids[0]) in other.message
    assert free.job_ids != first.job_ids


async def test_two_processes_with_the_same_key_at_once_make_one_job(database: Database, sandbox: Sandbox) -> None:
    async def submit() -> list[JobId]:
        entry = (
            await submission.insert_interactive(
                database, JobIds(database), [new(key="k")], reply_to=None, chunk_rows=64, admit=all_admitted
            )
        )[0]
        assert isinstance(entry, Stored)
        return entry.job_ids

    found = await asyncio.gather(*[submit() for _ in range(8)])
    assert len({tuple(ids) for ids in found}) == 1
    assert sandbox.query("SELECT count(*), sum(rows) FROM chunks") == [(1, 1)]


async def test_a_batch_key_returns_the_same_jobs_and_refuses_others(database: Database) -> None:
    first = await batch(database, 12, idempotency_key="k")
    again = await batch(database, 12, idempotency_key="k")
    assert again.job_ids == first.job_ids
    assert again.chunks == []
    with pytest.raises(DuplicateJob):
        await batch(database, 12, idempotency_key="k", payload_hash=b"y")


async def test_eight_workers_at_once_never_take_the_same_chunk(database: Database) -> None:
    await batch(database, 200)
    found = await asyncio.gather(*[take(database) for _ in range(20)])
    chunks = [claim.first_job_id for claim in found if claim is not None]
    assert len(chunks) == len(set(chunks)) == 20
    assert await take(database) is None


async def test_a_claim_whose_reply_was_lost_is_repeated_and_returns_the_same_rows(database: Database) -> None:
    await batch(database, 20)
    run_id = uuid4()
    first = await claims.claim_best(database, "m", Lane.BULK, run_id, worker="w", lease=LEASE)
    again = await claims.claim_best(database, "m", Lane.BULK, run_id, worker="w", lease=LEASE)
    assert first is not None
    assert again is not None
    assert again.first_job_id == first.first_job_id
    assert [job.job_id for job in again.jobs] == [job.job_id for job in first.jobs]
    assert again.fence == first.fence + 1


async def test_what_waits_long_is_not_overtaken_for_ever(database: Database) -> None:
    old = await batch(database, 1)
    await submission.insert_batch(
        database,
        JobIds(database),
        [new(priority=-3)],
        name="urgent",
        tenant="default",
        idempotency_key=None,
        payload_hash=b"y",
        chunk_rows=10,
        admit=all_admitted,
    )
    async with database.connection() as connection:
        for minutes, first in ((29, False), (41, True)):
            await connection.execute(
                "UPDATE chunks SET created_at = now() - make_interval(mins => %s) WHERE batch_id = %s",
                (minutes, old.batch_id),
            )
            claim = await take(database)
            assert claim is not None
            assert (claim.batch_id == old.batch_id) is first
            await connection.execute("UPDATE chunks SET state = 'queued', run_id = NULL")


async def test_lower_priority_numbers_go_first_then_the_batch_with_less_running(database: Database) -> None:
    big, small = await batch(database, 40), await batch(database, 10)
    urgent = await submission.insert_batch(
        database,
        JobIds(database),
        [new(priority=-5)],
        name="u",
        tenant="default",
        idempotency_key=None,
        payload_hash=b"",
        chunk_rows=10,
        admit=all_admitted,
    )
    order = [claim.batch_id for _ in range(3) if (claim := await take(database))]
    assert order[0] == urgent.batch_id
    assert {order[1], order[2]} == {big.batch_id, small.batch_id}


async def test_a_second_delivery_of_a_settled_chunk_changes_nothing(database: Database, sandbox: Sandbox) -> None:
    stored = await batch(database, 10)
    claim = await take(database)
    assert claim is not None
    assert await settlement.settle(database, [report(claim)]) == {(claim.first_job_id, claim.fence)}
    before = sandbox.query("SELECT job_id, xid::text, settled_at FROM outcomes ORDER BY job_id")
    assert await settlement.settle(database, [report(claim)]) == set()
    assert await claims.claim_named(database, [(stored.chunks[0].first_job_id, uuid4())], worker="w", lease=LEASE) == {}
    assert sandbox.query("SELECT job_id, xid::text, settled_at FROM outcomes ORDER BY job_id") == before
    assert sandbox.query("SELECT succeeded, prompt_tokens, completion_tokens, state FROM chunks") == [
        (10, 30, 10, "done")
    ]


async def test_a_run_that_lost_its_chunk_writes_nothing(database: Database, sandbox: Sandbox) -> None:
    await batch(database, 1)
    slow = await take(database, lease=GONE)
    assert slow is not None
    assert await lost(database) == (1, [])
    other = await take(database)
    assert other is not None
    assert await settlement.settle(database, [report(slow)]) == set()
    assert sandbox.query("SELECT count(*) FROM outcomes") == [(0,)]
    assert await settlement.settle(database, [report(other)]) == {(other.first_job_id, other.fence)}
    assert await claims.renew(database, [slow.run_id, other.run_id], LEASE) == {}


async def test_rows_that_are_settled_are_not_claimed_again(database: Database) -> None:
    await batch(database, 10)
    claim = await take(database)
    assert claim is not None
    await settlement.settle(database, [report(claim, rows=4, next_state=ChunkState.QUEUED)])
    again = await take(database)
    assert again is not None
    assert [job.job_id for job in again.jobs] == [job.job_id for job in claim.jobs[4:]]


async def test_a_chunk_that_goes_back_with_a_delay_waits_and_remembers_why(
    database: Database, sandbox: Sandbox
) -> None:
    await batch(database, 2)
    claim = await take(database)
    assert claim is not None
    failure = FailedAttempt(claim.jobs[0].job_id, 1, 1, ErrorCode.ENGINE_FAILED, "http://e")
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
    assert await take(database) is None
    assert await recovery.runnable_chunks(database) == []
    sandbox.query("UPDATE chunks SET due_at = now()")
    again = await take(database)
    assert again is not None
    assert [job.failed_attempts for job in again.jobs] == [1, 0]
    assert again.rounds == 1


async def test_a_cancelled_job_keeps_its_outcome_whatever_comes_later(database: Database, sandbox: Sandbox) -> None:
    stored = await batch(database, 2)
    claim = await take(database)
    assert claim is not None
    assert (found := await settlement.cancel(database, stored.job_ids[0])) and found[0]
    assert (found := await settlement.cancel(database, stored.job_ids[0])) and not found[0]
    assert await settlement.cancel(database, JobId(1)) is None
    await settlement.settle(database, [report(claim)])
    found = await queries.outcomes_of(database, list(stored.job_ids))
    assert [found[job_id].state for job_id in stored.job_ids] == [JobState.CANCELLED, JobState.SUCCEEDED]
    assert sandbox.query("SELECT succeeded, cancelled, state FROM chunks") == [(1, 1, "done")]


async def test_a_chunk_whose_rows_were_all_cancelled_is_finished_and_claimed_empty(database: Database) -> None:
    stored = await batch(database, 2)
    for job_id in stored.job_ids:
        await settlement.cancel(database, job_id)
    assert (await queries.batch_progress(database, stored.batch_id)).finished
    claim = await take(database)
    assert claim is not None
    assert claim.jobs == ()


async def test_cancelling_after_a_halving_leaves_the_neighbours_claimable(database: Database) -> None:
    stored = await batch(database, 10)
    claim = await take(database, lease=GONE)
    assert claim is not None
    settled = Settlement(claim.first_job_id, claim.fence, report(claim).rows[5:8] + report(claim).rows[:1])  # type: ignore[operator]
    await settlement.settle(database, [settled])
    await lost(database)
    assert (found := await settlement.cancel(database, stored.job_ids[1])) and found[0]
    assert (found := await settlement.cancel(database, stored.job_ids[9])) and found[0]
    while again := await take(database):
        await settlement.settle(database, [report(again)])
    found = await queries.outcomes_of(database, list(stored.job_ids))
    assert {outcome.state for outcome in found.values()} == {JobState.SUCCEEDED, JobState.CANCELLED}
    assert (await queries.batch_progress(database, stored.batch_id)).finished


async def test_cancels_and_settles_at_once_never_deadlock(database: Database) -> None:
    stored = await batch(database, 200, chunk_rows=10)
    held = [claim for _ in range(20) if (claim := await take(database))]
    results = await asyncio.gather(
        *[settlement.cancel(database, job_id) for job_id in stored.job_ids[::5]],
        *[settlement.settle(database, [report(claim) for claim in held[k::4]]) for k in range(4)],
        claims.renew(database, [claim.run_id for claim in held], LEASE),
        return_exceptions=True,
    )
    assert [found for found in results if isinstance(found, BaseException)] == []
    progress = await queries.batch_progress(database, stored.batch_id)
    assert (progress.settled, progress.finished) == (200, True)


async def test_a_stale_report_beside_the_right_one_in_a_write_changes_nothing(
    database: Database, sandbox: Sandbox
) -> None:
    await batch(database, 4)
    stale = await take(database, lease=GONE)
    assert stale is not None
    sandbox.query("UPDATE chunks SET state = 'queued'")
    fresh = await take(database)
    assert fresh is not None
    held = await settlement.settle(database, [report(stale, next_state=ChunkState.QUEUED), report(fresh)])
    assert held == {(fresh.first_job_id, fresh.fence)}
    assert sandbox.query("SELECT succeeded, state FROM chunks") == [(4, "done")]


async def test_many_batches_at_once_share_the_pool(database: Database) -> None:
    ids = JobIds(database)

    async def submit(number: int) -> StoredBatch:
        return await submission.insert_batch(
            database, ids, [new() for _ in range(1_500)], name=f"b{number}", tenant="default", idempotency_key=None,
            payload_hash=b"", chunk_rows=500, admit=all_admitted,
        )  # fmt: skip

    async with asyncio.timeout(8):
        found = await asyncio.gather(*[submit(i) for i in range(20)])
    taken = [job_id for stored in found for job_id in stored.job_ids]
    assert len(set(taken)) == len(taken) == 30_000


async def test_a_new_partition_is_made_while_a_copy_is_open(database: Database, sandbox: Sandbox) -> None:
    await batch(database, 1)
    async with database.transaction() as connection:
        await connection.execute("LOCK TABLE jobs IN ROW EXCLUSIVE MODE")
        sandbox.query("SELECT setval('job_id_blocks', %s)", 3 * PARTITION_JOBS // BLOCK_JOBS)
        async with asyncio.timeout(5):
            stored = await batch(database, 1)
            assert await queries.outcomes_of(database, list(stored.job_ids))
    assert sandbox.query("SELECT count(*) FROM jobs_3") == [(1,)]


async def test_a_value_that_cannot_be_stored_is_refused_without_being_repeated(
    servers: SupervisorClient, database: Database
) -> None:
    await batch(database, 1)
    claim = await take(database)
    assert claim is not None
    row = SettledRow(claim.jobs[0].job_id, 1, JobState.SUCCEEDED, b'{"text":"CANARY \\u0000"}')
    with pytest.raises(UnstorableValue) as raised:
        await settlement.settle(database, [Settlement(claim.first_job_id, claim.fence, [row])])
    assert "CANARY" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert "CANARY" not in (servers.folder / "postgres.log").read_text(), (
        "Postgres quotes values in its log unless told not to"
    )


async def test_lists_by_state_find_what_is_there(database: Database, sandbox: Sandbox) -> None:
    stored = await batch(database, 30)
    first = await take(database)
    assert first is not None
    await settlement.settle(database, [report(first)])
    await settlement.cancel(database, stored.job_ids[25])
    running = await take(database)
    assert running is not None
    expected = {
        None: list(stored.job_ids),
        JobState.SUCCEEDED: [job.job_id for job in first.jobs],
        JobState.CANCELLED: [stored.job_ids[25]],
        JobState.RUNNING: [job.job_id for job in running.jobs],
        JobState.QUEUED: [j for j in stored.job_ids[20:] if j != stored.job_ids[25]],
        JobState.FAILED: [],
    }
    for state, ids in expected.items():
        found = await queries.recent_jobs(database, state=state, kind="intent", limit=100)
        assert [outcome.job_id for outcome in found] == sorted(ids, reverse=True), state
        assert await queries.recent_jobs(database, state=state, kind="chat", limit=5) == []
    assert len(await queries.recent_jobs(database, state=None, kind=None, limit=3)) == 3


async def test_a_chunk_that_lost_its_worker_is_halved_and_counts_stay_right(
    database: Database, sandbox: Sandbox
) -> None:
    stored = await batch(database, 10)
    claim = await take(database, lease=GONE)
    assert claim is not None
    await settlement.settle(database, [report(claim, rows=2, next_state=ChunkState.RUNNING)])
    assert await lost(database) == (1, [])
    halves = sandbox.query("SELECT rows, crashes, last_code, state FROM chunks ORDER BY first_job_id")
    assert halves == [(5, 0, "worker_lost", "queued"), (5, 0, "worker_lost", "queued")]
    claimed = [await take(database), await take(database)]
    jobs = [job.job_id for found in claimed if found for job in found.jobs]
    assert jobs == list(stored.job_ids[2:])
    await settlement.settle(database, [report(found) for found in claimed if found])
    progress = await queries.batch_progress(database, stored.batch_id)
    assert (progress.jobs, progress.succeeded, progress.finished) == (10, 10, True)


async def test_only_a_single_row_is_called_poison_after_its_third_lost_worker(database: Database) -> None:
    stored = await batch(database, 4)
    poison = stored.job_ids[3]
    for _ in range(40):
        claim = await take(database, lease=GONE)
        if claim is None:
            break
        if any(job.job_id == poison for job in claim.jobs):
            await lost(database)
        else:
            await settlement.settle(database, [report(claim)])
    found = await queries.outcomes_of(database, list(stored.job_ids))
    assert [found[job_id].state for job_id in stored.job_ids] == [JobState.SUCCEEDED] * 3 + [JobState.FAILED]
    error = found[poison].error
    assert error is not None
    assert error.code is ErrorCode.CRASHED_WORKER


async def test_the_second_half_of_a_lost_chunk_counts_its_claims_on_and_knows_what_was_cancelled(
    database: Database,
) -> None:
    stored = await batch(database, 4)
    assert await take(database, lease=GONE) is not None
    await settlement.cancel(database, stored.job_ids[3])
    await lost(database)
    halves = [await take(database), await take(database)]
    second = next(half for half in halves if half is not None and half.first_job_id == stored.job_ids[2])
    assert second.fence > 1, "a stream of the first run must not look newer than one of this"
    assert [job.job_id for job in second.jobs] == [stored.job_ids[2]]


async def test_a_deadline_that_passed_is_seen_at_the_claim(database: Database) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    await submission.insert_interactive(
        database, JobIds(database), [new(deadline=past), new()], reply_to=None, chunk_rows=64, admit=all_admitted
    )
    claim = await take(database, Lane.INTERACTIVE)
    assert claim is not None
    assert claim.jobs[0].seconds_to_deadline is not None
    assert -10 < claim.jobs[0].seconds_to_deadline < 0
    assert claim.jobs[1].seconds_to_deadline is None


async def test_outcomes_of_a_batch_come_in_the_order_of_its_jobs(database: Database) -> None:
    stored = await batch(database, 25)
    while claim := await take(database):
        await settlement.settle(database, [report(claim)])
    found = [outcome.job_id async for outcome in queries.batch_outcomes(database, stored.batch_id, page_rows=7)]
    assert found == list(stored.job_ids)


async def test_no_database_is_one_sentence(sandbox: Sandbox) -> None:
    nowhere = await Database(sandbox.database_url.rsplit("/", 1)[0] + "/absent").open()
    with pytest.raises(StoreUnavailable, match="Postgres cannot be reached"):
        await queries.queue_states(nowhere)
    await nowhere.close()


@pytest.fixture
async def narrow(sandbox: Sandbox) -> AsyncIterator[Database]:
    """A pool of two connections."""
    database = await Database(sandbox.database_url, max_connections=2).open()
    yield database
    await database.close()


async def sleeps(database: Database, seconds: float) -> None:
    """Hold a connection for a while."""
    async with database.connection() as connection:
        await connection.execute("SELECT pg_sleep(%s)", (seconds,))


async def test_callers_who_outnumber_the_connections_wait_and_are_not_told_that_the_database_is_away(
    narrow: Database,
) -> None:
    await asyncio.gather(*[sleeps(narrow, 0.6) for _ in range(6)])


async def test_connections_that_the_server_closed_are_replaced_before_anybody_gets_one(
    database: Database, sandbox: Sandbox
) -> None:
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    await asyncio.gather(*[sleeps(database, 0.2) for _ in range(8)])
    assert sandbox.query(f"SELECT count(pg_terminate_backend(pid)) {others}")[0][0] > 2
    wait_for(lambda: sandbox.query(f"SELECT count(*) {others}") == [(0,)], "the connections to be closed")
    await asyncio.gather(*[sleeps(database, 0.2) for _ in range(8)])


async def test_a_caller_who_gives_up_while_a_connection_is_looked_at_costs_none(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_: object) -> bool:
        await asyncio.sleep(60)
        return True

    database = await Database(sandbox.database_url, max_connections=2).open()
    await asyncio.gather(*[sleeps(database, 0.1) for _ in range(2)])
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.store.database._is_alive", never)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await sleeps(database, 0)
    await asyncio.gather(*[sleeps(database, 0.1) for _ in range(4)])
    await database.close()


def test_several_hosts_lead_to_the_one_that_answers(sandbox: Sandbox) -> None:
    user, rest = sandbox.database_url.rsplit("@", 1)
    address, name = rest.split("/")
    assert migrate.upgrade(f"{user}@127.0.0.1:9,{address}/{name}?target_session_attrs=read-write") == "0004"


async def test_a_reply_that_is_asked_for_while_it_is_sent_is_owed_once_more(
    database: Database, sandbox: Sandbox
) -> None:
    stored = await batch(database, 1)
    claim = await take(database)
    assert claim is not None
    await settlement.settle(database, [report(claim)])
    owed = reply_outbox.PendingReply(stored.job_ids[0], "crm", "k")
    await reply_outbox.enqueue(database, [owed])
    async with reply_outbox.claim_due(database, [owed.job_id]) as (found, sent):
        assert found == [owed]
        again = asyncio.create_task(reply_outbox.enqueue(database, [owed]))
        async with asyncio.timeout(10):
            while not sandbox.query("SELECT 1 FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110 - another connection's lock
                await asyncio.sleep(0.01)
        sent.append(owed)
    await again
    assert sandbox.query("SELECT count(*) FROM reply_outbox") == [(1,)]
