"""Any interleaving of what producers, workers, recovery and operators do to the store keeps its promises (hypothesis).

The machine plays several workers that claim, renew, report, lose replies and vanish; recovery that takes what is silent;
callers that submit, submit again and cancel; a person who replays and discards. After every step: an outcome never changes, a
job has at most one that stands, nobody holds a row that is settled, and the counters say what the outcomes say.
"""

import asyncio
import os
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from pipeline.store import Database, claims, dead_letters, recovery, settlement, submission
from pipeline.store.claims import Claim
from pipeline.store.dead_letters import DeadLetterFilter, Decision
from pipeline.store.ids import JobIds
from pipeline.store.settlement import ChunkState, SettledRow, Settlement
from schemas.doorbells import Lane
from schemas.errors import ErrorCode
from schemas.ids import JobId
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import LEASE, all_admitted, failed, new, report, take

T = TypeVar("T")
LANES = st.sampled_from(list(Lane))
_sandbox: list[Sandbox] = []


class AnyInterleaving(RuleBasedStateMachine):
    """See the module."""

    runs = Bundle("runs")
    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.sandbox = _sandbox[0]
        self.loop = asyncio.new_event_loop()
        self.database = self.do(Database(self.sandbox.database_url).open())
        self.ids = JobIds(self.database)
        self.looked: frozenset[recovery.LeaseSighting] = frozenset()
        self.outcomes: dict[tuple[int, int], tuple[str, str]] = {}
        self.watcher = psycopg.connect(self.sandbox.database_url, autocommit=True)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it to its end."""
        return self.loop.run_until_complete(work)

    @initialize()
    def empty(self) -> None:
        """No jobs yet."""
        self.watcher.execute("TRUNCATE jobs, chunks, outcomes, failures, decisions, batches, job_keys, answers")

    # --- callers

    @rule(target=jobs, rows=st.integers(1, 9), chunk_rows=st.integers(1, 4), late=st.booleans())
    def submit_batch(self, rows: int, chunk_rows: int, late: bool) -> Any:
        """Some rows in several chunks; some are past their deadline already."""
        deadline = datetime.now(UTC) - timedelta(seconds=1) if late else None
        made = [new(deadline=deadline if i % 2 else None) for i in range(rows)]
        stored = self.do(
            submission.insert_batch(
                self.database,
                self.ids,
                made,
                name="b",
                tenant="default",
                idempotency_key=None,
                payload_hash=b"",
                chunk_rows=chunk_rows,
                admit=all_admitted,
            )
        )
        return multiple(*stored.job_ids)

    @rule(target=jobs, key=st.sampled_from([None, "a", "b"]))
    def submit_one(self, key: str | None) -> Any:
        """One interactive job, perhaps with a key that was used before."""
        (stored,) = self.do(
            submission.insert_interactive(
                self.database, self.ids, [new(key=key)], reply_to=None, chunk_rows=8, admit=all_admitted
            )
        )
        assert isinstance(stored, submission.Stored)
        return stored.job_ids[0]

    @rule(job_id=jobs)
    def cancel(self, job_id: JobId) -> None:
        """Whatever its state."""
        assert self.do(settlement.cancel(self.database, job_id)) is not None

    # --- workers

    @rule(target=runs, lane=LANES)
    def claim(self, lane: Lane) -> Any:
        """Take the next chunk."""
        found = self.do(take(self.database, lane))
        return multiple() if found is None else self.taken(found)

    @rule(target=runs, lane=LANES)
    def claim_and_lose_the_reply(self, lane: Lane) -> Any:
        """The same claim again finds the same chunk with the same rows."""
        run_id = uuid4()
        asked = [
            self.do(claims.claim_best(self.database, "m", lane, run_id, worker="w", lease=LEASE)) for _ in range(2)
        ]
        assert (asked[0] is None) == (asked[1] is None)
        if asked[0] is None or asked[1] is None:
            return multiple()
        assert asked[0].first_job_id == asked[1].first_job_id
        assert [job.job_id for job in asked[0].jobs] == [job.job_id for job in asked[1].jobs]
        return self.taken(asked[1])

    def taken(self, claim: Claim) -> Claim:
        """No row of a claim has an outcome that stands."""
        settled = self.watcher.execute(
            f"SELECT count(*) FROM ({STANDING}) s WHERE job_id = ANY(%s)", ([job.job_id for job in claim.jobs],)
        ).fetchone()
        assert settled == (0,)
        return claim

    @rule(lane=LANES)
    def run_and_fail(self, lane: Lane) -> None:
        """A chunk of dead letters, from beginning to end."""
        found = self.do(take(self.database, lane))
        if found is not None:
            self.do(settlement.settle(self.database, [failed(found)]))

    @rule(run=runs)
    def renew(self, run: Claim) -> None:
        """Also of runs that were lost, which changes nothing."""
        self.do(claims.renew(self.database, [run.run_id], LEASE))

    @rule(run=runs, rows=st.integers(0, 9), twice=st.booleans())
    def report_some(self, run: Claim, rows: int, twice: bool) -> None:
        """Some rows succeeded; perhaps the reply was lost and it is said again."""
        for _ in range(1 + twice):
            self.do(settlement.settle(self.database, [report(run, rows, ChunkState.RUNNING)]))

    @rule(run=consumes(runs), how=st.sampled_from(["succeeded", "failed", "mixed"]), twice=st.booleans())
    def report_all(self, run: Claim, how: str, twice: bool) -> None:
        """The last word of a run."""
        good, bad = report(run), failed(run)
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
        """Drained, or to be tried again: some rows are done, the rest goes back."""
        done = report(run, rows).rows
        back = Settlement(
            run.first_job_id,
            run.fence,
            done,
            next_state=ChunkState.QUEUED,
            retry=retry,
            code=ErrorCode.ENGINE_FAILED if retry else None,
        )
        self.do(settlement.settle(self.database, [back]))

    @rule(run=runs)
    def fall_silent(self, run: Claim) -> None:
        """Its lease is over; the worker may be dead, or only slow."""
        self.watcher.execute(
            "UPDATE chunks SET lease_expires_at = now() - interval '1 s' WHERE run_id = %s AND state = 'running'",
            (run.run_id,),
        )

    @rule(run=runs)
    def lose(self, run: Claim) -> None:
        """Silent for long enough; it may speak again later."""
        self.fall_silent(run)
        self.look()
        self.requeue_lost()

    # --- recovery and people

    @rule()
    def look(self) -> None:
        """What recovery remembers."""
        self.looked = self.do(recovery.expired_leases(self.database, LEASE))

    @rule()
    def requeue_lost(self) -> None:
        """Only what did not move since the last look is taken."""
        self.do(recovery.requeue_lost(self.database, self.looked))

    @rule()
    def expire(self) -> None:
        """Queued jobs past their deadline."""
        self.do(recovery.expire(self.database))

    @rule()
    def replay_everything(self) -> None:
        """A person has mended what was wrong."""
        self.do(dead_letters.decide(self.database, DeadLetterFilter(), Decision.REPLAYED, after=None, limit=1_000))

    @rule(decision=st.sampled_from(list(Decision)), limit=st.integers(1, 5))
    def decide(self, decision: Decision, limit: int) -> None:
        """A person looks through some dead letters."""
        self.do(dead_letters.decide(self.database, DeadLetterFilter(), decision, after=None, limit=limit))

    # --- promises

    @invariant()
    def an_outcome_never_changes(self) -> None:
        """Nor does it vanish."""
        now = {
            (job_id, replay): (state, xid)
            for job_id, replay, state, xid in self.watcher.execute(
                "SELECT job_id, replay, state, xid::text FROM outcomes"
            )
        }
        assert self.outcomes.items() <= now.items()
        self.outcomes = now

    @invariant()
    def at_most_one_outcome_stands(self) -> None:
        """Of each job."""
        twice = self.watcher.execute(
            f"SELECT job_id FROM ({STANDING}) s GROUP BY job_id HAVING count(*) > 1"
        ).fetchall()
        assert twice == []

    @invariant()
    def counters_say_what_the_outcomes_say(self) -> None:
        """Of all chunks together: a halved chunk's counters stay with its first half."""
        counted = self.watcher.execute(
            """SELECT coalesce(sum(succeeded), 0), coalesce(sum(failed), 0), coalesce(sum(cancelled), 0),
                      coalesce(sum(expired), 0) FROM chunks"""
        ).fetchone()
        stored = self.watcher.execute(
            f"""SELECT count(*) FILTER (WHERE state = 'succeeded'), count(*) FILTER (WHERE state = 'failed'),
                       count(*) FILTER (WHERE state = 'cancelled'), count(*) FILTER (WHERE state = 'expired')
                FROM ({STANDING}) s"""
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
    def what_is_open_will_be_claimed(self) -> None:
        """A job without an outcome lies in a chunk that is not done."""
        forgotten = self.watcher.execute(
            f"""SELECT count(*) FROM jobs j JOIN chunks c ON j.job_id BETWEEN c.first_job_id AND c.first_job_id + c.rows - 1
                WHERE c.state = 'done' AND NOT EXISTS (SELECT 1 FROM ({STANDING}) s WHERE s.job_id = j.job_id)"""
        ).fetchone()
        assert forgotten == (0,)

    def teardown(self) -> None:
        """Everything ends when somebody goes on working."""
        self.watcher.execute("UPDATE chunks SET due_at = now()")
        self.watcher.execute("UPDATE chunks SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'")
        self.do(recovery.requeue_lost(self.database, self.do(recovery.expired_leases(self.database, LEASE))))
        for lane in Lane:
            while claim := self.do(take(self.database, lane)):
                self.do(settlement.settle(self.database, [report(claim)]))
        row = self.watcher.execute(
            f"""SELECT count(*), (SELECT count(*) FROM ({STANDING}) s),
                       (SELECT count(*) FROM chunks WHERE state <> 'done') FROM jobs"""
        ).fetchone()
        assert row is not None
        assert row[0] == row[1], "jobs without an outcome"
        assert row[2] == 0, "chunks that are not done"
        self.watcher.close()
        self.do(self.database.close())
        self.loop.close()


STANDING = """SELECT o.* FROM outcomes o WHERE NOT EXISTS (
    SELECT 1 FROM dead_letter_decisions d WHERE d.job_id = o.job_id AND d.replay = o.replay AND d.decision = 'replayed')"""


@pytest.fixture
def _one_place(sandbox: Sandbox) -> Iterator[None]:
    _sandbox.append(sandbox)
    yield
    _sandbox.clear()


@pytest.mark.usefixtures("_one_place")
@pytest.mark.timeout(3_000)
class TestAnyInterleaving(AnyInterleaving.TestCase):  # type: ignore[misc]
    """Runs the machine."""

    settings = settings(
        max_examples=int(os.environ.get("YYC3_TEST_EXAMPLES", "60")),
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
