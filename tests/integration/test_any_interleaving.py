"""Any interleaving of what producers, workers, recovery and operators do to the store keeps its promises (hypothesis).

The machine plays several workers that claim, renew, settle, lose replies and disappear; recovery that
requeues what is not renewed; callers that submit, submit again and cancel; a person who replays and
discards; and processes that stop while they hold a lock, for any number of steps. After every step an
outcome has not changed, a job has at most one current outcome, no claim holds a settled row, the
counters equal the outcomes, and every row has the tenant of its job.
"""

import asyncio
import os
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from pipeline.store import Database, cancellation, claims, dead_letters, leases, recovery, settlement
from pipeline.store.claims import Claim
from pipeline.store.connecting import ROLE_SETTINGS
from pipeline.store.dead_letters import DeadLetterFilter, Decision
from pipeline.store.ids import JobIds
from pipeline.store.schema.tables import metadata
from pipeline.store.settlement import ChunkState, FailedAttempt, SettledRow, Settlement
from schemas.doorbells import Lane
from schemas.errors import ErrorCode, StoreUnavailable
from schemas.ids import JobId
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import LEASE, claim_next, failed, new_job, store_batch, store_jobs, succeeded

T = TypeVar("T")
LANES = st.sampled_from(list(Lane))
TENANTS = st.sampled_from(["default", "shop"])
_sandbox: list[Sandbox] = []


class AnyInterleaving(RuleBasedStateMachine):
    """The machine of this module."""

    runs = Bundle("runs")
    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.sandbox = _sandbox[0]
        self.loop = asyncio.new_event_loop()
        self.database = self.do(Database(self.sandbox.database_url).open())
        self.ids = JobIds(self.database)
        self.sightings: frozenset[recovery.LeaseSighting] = frozenset()
        self.outcomes: dict[tuple[int, int], tuple[str, str]] = {}
        self.watcher = psycopg.connect(self.sandbox.database_url, autocommit=True)
        self.stopped: psycopg.Connection[Any] | None = None

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self.loop.run_until_complete(work)

    def tried(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Run a coroutine that may be refused, after a while, because a process that stopped holds a lock."""
        try:
            return self.do(work)
        except StoreUnavailable:
            assert self.stopped is not None
            return None

    # --- a process that stops

    @rule(place=st.integers(0, 3), change=st.booleans())
    def this_process_stops_here(self, place: int, change: bool) -> None:
        """Lock a chunk, or change it, and go no further: a client that was suspended in a transaction."""
        if self.stopped is not None:
            return
        self.stopped = psycopg.connect(self.sandbox.database_url)
        chunk = (
            "SELECT first_job_id FROM chunks WHERE state <> 'done' ORDER BY first_job_id LIMIT 1 OFFSET %s FOR UPDATE"
        )
        if change:
            chunk = f"UPDATE chunks SET worker = 'stopped' WHERE first_job_id = ({chunk})"
        self.stopped.execute(chunk, (place,))

    @rule(killed=st.booleans())
    def it_goes_on(self, killed: bool) -> None:
        """It commits, or its connection was closed meanwhile."""
        if self.stopped is not None:
            if not killed:
                self.stopped.commit()
            self.stopped.close()
            self.stopped = None

    @initialize()
    def empty(self) -> None:
        """Begin without jobs."""
        self.watcher.execute(f"TRUNCATE {', '.join(metadata.tables)}")

    # --- callers

    @rule(target=jobs, rows=st.integers(1, 9), chunk_rows=st.integers(1, 4), late=st.booleans(), tenant=TENANTS)
    def submit_batch(self, rows: int, chunk_rows: int, late: bool, tenant: str) -> Any:
        """Store rows in several chunks; some are past their deadline already."""
        deadline = datetime.now(UTC) - timedelta(seconds=1) if late else None
        jobs = [new_job(deadline=deadline if i % 2 else None, tenant=tenant) for i in range(rows)]
        stored = self.do(store_batch(self.database, jobs, chunk_rows=chunk_rows, tenant=tenant, ids=self.ids))
        return multiple(*stored.job_ids)

    @rule(target=jobs, key=st.sampled_from([None, "a", "b"]), tenant=TENANTS)
    def submit_one(self, key: str | None, tenant: str) -> Any:
        """Store one interactive job, perhaps with a key that was used before."""
        (entry,) = self.do(store_jobs(self.database, [new_job(key=key, tenant=tenant)], ids=self.ids)).entries
        assert isinstance(entry, int)
        return entry

    @rule(job_id=jobs)
    def cancel(self, job_id: JobId) -> None:
        """Cancel a job, whatever its state."""
        cancelled = self.tried(cancellation.cancel(self.database, job_id))
        assert cancelled is not None or self.stopped is not None

    # --- workers

    @rule(target=runs, lane=LANES)
    def claim(self, lane: Lane) -> Any:
        """Claim the next chunk."""
        found = self.do(claim_next(self.database, lane))
        return multiple() if found is None else self.checked(found)

    @rule(target=runs, lane=LANES)
    def claim_and_lose_the_reply(self, lane: Lane) -> Any:
        """Claim twice with one run id: the second claim finds the same chunk with the same rows."""
        run_id = uuid4()
        first, again = [
            self.do(claims.claim_best(self.database, "m", lane, [run_id], worker="w", lease=LEASE)).get(run_id)
            for _ in range(2)
        ]
        assert (first is None) == (again is None)
        if first is None or again is None:
            return multiple()
        assert first.first_job_id == again.first_job_id
        assert [job.job_id for job in first.jobs] == [job.job_id for job in again.jobs]
        return self.checked(again)

    def checked(self, claim: Claim) -> Claim:
        """Check that no row of a claim has a current outcome."""
        settled = self.watcher.execute(
            f"SELECT count(*) FROM ({CURRENT}) s WHERE job_id = ANY(%s)", ([job.job_id for job in claim.jobs],)
        ).fetchone()
        assert settled == (0,)
        return claim

    @rule(lane=LANES)
    def run_and_fail(self, lane: Lane) -> None:
        """Claim a chunk and settle all its rows as failed."""
        found = self.do(claim_next(self.database, lane))
        if found is not None:
            self.do(settlement.settle(self.database, [failed(found)]))

    @rule(run=runs)
    def renew(self, run: Claim) -> None:
        """Renew a lease; that of a lost run stays lost."""
        self.do(leases.renew(self.database, [run.run_id], LEASE))

    @rule(run=runs, rows=st.integers(0, 9), twice=st.booleans())
    def settle_some(self, run: Claim, rows: int, twice: bool) -> None:
        """Settle some rows as succeeded; perhaps the reply was lost and they are settled again."""
        for _ in range(1 + twice):
            self.do(settlement.settle(self.database, [succeeded(run, rows, ChunkState.RUNNING)]))

    @rule(run=consumes(runs), how=st.sampled_from(["succeeded", "failed", "mixed"]), twice=st.booleans())
    def settle_all(self, run: Claim, how: str, twice: bool) -> None:
        """End a run."""
        good, bad = succeeded(run), failed(run)
        half = len(run.jobs) // 2
        rows: list[SettledRow] = {
            "succeeded": list(good.rows),
            "failed": list(bad.rows),
            "mixed": [*good.rows[:half], *bad.rows[half:]],
        }[how]
        for _ in range(1 + twice):
            self.do(
                settlement.settle(
                    self.database, [Settlement(run.first_job_id, run.fence, rows, next_state=ChunkState.DONE)]
                )
            )

    @rule(run=consumes(runs), rows=st.integers(0, 3), retry=st.booleans())
    def hand_back(self, run: Claim, rows: int, retry: bool) -> None:
        """Settle some rows and requeue the rest: the worker drains, or an attempt failed."""
        code = ErrorCode.ENGINE_FAILED if retry else None
        failures = [
            FailedAttempt(job.job_id, job.replay, job.tenant, job.failed_attempts + 1, ErrorCode.ENGINE_FAILED, None)
            for job in run.jobs[rows:]
            if retry
        ]
        done = succeeded(run, rows, ChunkState.QUEUED)
        back = replace(done, failures=failures, retry=retry, code=code)
        self.do(settlement.settle(self.database, [back]))

    @rule(run=runs)
    def let_lease_expire(self, run: Claim) -> None:
        """Let a lease expire; the worker may be dead, or only slow."""
        self.watcher.execute(
            """UPDATE chunks SET lease_expires_at = now() - interval '1 s' WHERE first_job_id IN (
                   SELECT first_job_id FROM chunks WHERE run_id = %s AND state = 'running' FOR UPDATE SKIP LOCKED)""",
            (run.run_id,),
        )

    @rule(run=runs)
    def lose(self, run: Claim) -> None:
        """Requeue a run that may still settle later."""
        self.let_lease_expire(run)
        self.look()
        self.requeue_lost()

    # --- recovery and people

    @rule()
    def look(self) -> None:
        """Remember the expired leases, as recovery does."""
        self.sightings = self.do(recovery.expired_leases(self.database, LEASE))

    @rule()
    def requeue_lost(self) -> None:
        """Requeue the chunks whose lease did not move since the last look."""
        self.do(recovery.requeue_lost(self.database, self.sightings))

    @rule()
    def expire(self) -> None:
        """Expire queued jobs past their deadline."""
        self.do(recovery.expire(self.database))

    @rule()
    def replay_everything(self) -> None:
        """Replay every dead letter."""
        self.do(dead_letters.decide(self.database, DeadLetterFilter(), Decision.REPLAYED, after=None, limit=1_000))

    @rule(decision=st.sampled_from(list(Decision)), limit=st.integers(1, 5))
    def decide(self, decision: Decision, limit: int) -> None:
        """Replay or discard some dead letters."""
        self.do(dead_letters.decide(self.database, DeadLetterFilter(), decision, after=None, limit=limit))

    # --- promises

    @invariant()
    def an_outcome_never_changes(self) -> None:
        """Nor is it deleted."""
        now = {
            (job_id, replay): (state, written)
            for job_id, replay, state, written in self.watcher.execute(
                "SELECT job_id, replay, state, xmin::text FROM outcomes"
            )
        }
        assert self.outcomes.items() <= now.items()
        self.outcomes = now

    @invariant()
    def at_most_one_outcome_is_current(self) -> None:
        """Of each job."""
        doubled = self.watcher.execute(
            f"SELECT job_id FROM ({CURRENT}) s GROUP BY job_id HAVING count(*) > 1"
        ).fetchall()
        assert doubled == []

    @invariant()
    def counters_equal_the_outcomes(self) -> None:
        """Summed over all chunks: the counters of a halved chunk stay with its first half."""
        counted = self.watcher.execute(
            """SELECT coalesce(sum(succeeded), 0), coalesce(sum(failed), 0), coalesce(sum(cancelled), 0),
                      coalesce(sum(expired), 0) FROM chunks"""
        ).fetchone()
        stored = self.watcher.execute(
            f"""SELECT count(*) FILTER (WHERE state = 'succeeded'), count(*) FILTER (WHERE state = 'failed'),
                       count(*) FILTER (WHERE state = 'cancelled'), count(*) FILTER (WHERE state = 'expired')
                FROM ({CURRENT}) s"""
        ).fetchone()
        assert counted is not None
        assert tuple(int(n) for n in counted) == stored

    @invariant()
    def every_job_lies_in_one_chunk(self) -> None:
        """However often chunks were halved."""
        wrong = self.watcher.execute(
            """SELECT count(*) FROM jobs j WHERE 1 <> (
                   SELECT count(*) FROM chunks c WHERE j.job_id BETWEEN c.first_job_id AND c.first_job_id + c.rows - 1)"""
        ).fetchone()
        assert wrong == (0,)

    @invariant()
    def every_open_job_will_be_claimed(self) -> None:
        """A job without a current outcome lies in a chunk that is not done."""
        unclaimable = self.watcher.execute(
            f"""SELECT count(*) FROM jobs j JOIN chunks c ON j.job_id BETWEEN c.first_job_id AND c.first_job_id + c.rows - 1
                WHERE c.state = 'done' AND NOT EXISTS (SELECT 1 FROM ({CURRENT}) s WHERE s.job_id = j.job_id)"""
        ).fetchone()
        assert unclaimable == (0,)

    @invariant()
    def every_row_has_the_tenant_of_its_job(self) -> None:
        """Also where no run settled the job."""
        for table in ("outcomes", "failed_attempts", "dead_letter_decisions"):
            wrong = self.watcher.execute(
                f"SELECT count(*) FROM {table} t JOIN jobs j USING (job_id) WHERE t.tenant <> j.tenant"
            ).fetchone()
            assert wrong == (0,), table

    def teardown(self) -> None:
        """Check that every job gets an outcome when a worker continues."""
        self.it_goes_on(killed=True)
        self.watcher.execute("UPDATE chunks SET due_at = now()")
        self.watcher.execute("UPDATE chunks SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'")
        self.do(recovery.requeue_lost(self.database, self.do(recovery.expired_leases(self.database, LEASE))))
        for lane in Lane:
            while claim := self.do(claim_next(self.database, lane)):
                self.do(settlement.settle(self.database, [succeeded(claim)]))
        row = self.watcher.execute(
            f"""SELECT count(*), (SELECT count(*) FROM ({CURRENT}) s),
                       (SELECT count(*) FROM chunks WHERE state <> 'done') FROM jobs"""
        ).fetchone()
        assert row is not None
        assert row[0] == row[1], "jobs without an outcome"
        assert row[2] == 0, "chunks that are not done"
        self.watcher.close()
        self.do(self.database.close())
        self.loop.close()


CURRENT = """SELECT o.* FROM outcomes o WHERE NOT EXISTS (
    SELECT 1 FROM dead_letter_decisions d WHERE d.job_id = o.job_id AND d.replay = o.replay AND d.decision = 'replayed')"""


@pytest.fixture
def _one_sandbox(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(ROLE_SETTINGS, "lock_timeout", "30ms")
    monkeypatch.setitem(ROLE_SETTINGS, "idle_in_transaction_session_timeout", "0")
    _sandbox.append(sandbox)
    yield
    _sandbox.clear()


@pytest.mark.usefixtures("_one_sandbox")
@pytest.mark.timeout(3_000)
class TestAnyInterleaving(AnyInterleaving.TestCase):  # type: ignore[valid-type, misc]
    """Run the machine."""

    settings = settings(
        max_examples=int(os.environ.get("YYC3_TEST_EXAMPLES", "60")),
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
