"""Who is lost, and who only seems so; what recovery costs while nothing happens."""

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from pipeline.operations.recovery import Reach, Recovery
from pipeline.policies.leases import renewal_interval, scan_interval
from pipeline.store import Database, claims, recovery, settlement
from pipeline.store.claims import Claim
from schemas.errors import StoreUnavailable
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import GONE, LEASE, batch, report, take


def test_a_scan_is_longer_than_a_beat_and_a_lost_worker_is_found_within_half_a_minute() -> None:
    for seconds in (1.0, 2.0, 20.0, 3_600.0):
        lease = timedelta(seconds=seconds)
        assert renewal_interval(lease) < scan_interval(lease) <= timedelta(seconds=5)
    default = timedelta(seconds=20)
    assert default + 2 * scan_interval(default) <= timedelta(seconds=30)


async def overdue_claim(database: Database) -> Claim:
    await batch(database, 10)
    claim = await take(database, lease=GONE)
    assert claim is not None
    return claim


async def test_a_beat_between_two_looks_saves_a_run(database: Database) -> None:
    claim = await overdue_claim(database)
    first = await recovery.expired_leases(database, LEASE)
    assert [found.first_job_id for found in first] == [claim.first_job_id]
    assert await claims.renew(database, [claim.run_id], LEASE) == {claim.run_id: 0}
    assert await recovery.requeue_lost(database, first) == (0, [])
    assert await settlement.settle(database, [report(claim)]) == {(claim.first_job_id, claim.fence)}


async def test_a_lease_that_ends_later_than_it_can_is_over(database: Database, sandbox: Sandbox) -> None:
    """The database's clock was set back by an hour after the worker's last beat."""
    await overdue_claim(database)
    sandbox.query("UPDATE chunks SET lease_expires_at = now() + interval '1 hour'")
    assert await recovery.requeue_lost(database, await recovery.expired_leases(database, LEASE)) == (1, [])


async def test_a_chunk_that_was_to_wait_is_due_when_the_clock_was_set_back(
    database: Database, sandbox: Sandbox
) -> None:
    await batch(database, 1)
    sandbox.query("UPDATE chunks SET due_at = now() + interval '1 minute'")
    assert await take(database) is None
    sandbox.query("UPDATE chunks SET due_at = now() + interval '1 hour'")
    assert [waiting.chunks for waiting in await recovery.runnable_chunks(database)] == [1]
    assert await take(database) is not None


async def test_many_at_once_return_a_lost_chunk_once(database: Database, sandbox: Sandbox) -> None:
    await overdue_claim(database)
    silent = await recovery.expired_leases(database, LEASE)
    done = await asyncio.gather(*[recovery.requeue_lost(database, silent) for _ in range(8)])
    assert sum(returned for returned, _ in done) == 1
    assert sandbox.query("SELECT count(*), sum(rows), min(fence), max(fence) FROM chunks") == [(2, 10, 2, 2)]


@dataclass
class _Nobody:
    """A broker that is never asked, since nothing is queued."""

    streams: Any = None

    def end(self, _: object) -> None:
        assert not list(_)  # type: ignore[call-overload]


async def test_recovery_takes_a_run_at_the_second_look_and_never_at_the_first(
    database: Database, sandbox: Sandbox
) -> None:
    lease = timedelta(seconds=1)
    sweeper = Recovery(Reach(database, None, None, _Nobody()), [], lease)  # type: ignore[arg-type]
    await overdue_claim(database)
    assert (await sweeper.sweep()).returned_chunks == 0
    assert sweeper.suspected_runs == 1
    assert (await sweeper.sweep()).returned_chunks == 0, "the same look, a moment later"
    await asyncio.sleep(scan_interval(lease).total_seconds())
    assert (await sweeper.sweep()).returned_chunks == 1
    assert sandbox.query("SELECT DISTINCT state FROM chunks") == [("queued",)]


async def test_a_look_that_failed_proves_nothing(database: Database, sandbox: Sandbox) -> None:
    """After an outage everybody's lease is over: the looks begin anew, and the workers beat in between."""
    lease = timedelta(seconds=1)
    away = await Database(sandbox.database_url).open()
    sweeper = Recovery(Reach(away, None, None, _Nobody()), [], lease)  # type: ignore[arg-type]
    claim = await overdue_claim(database)
    await sweeper.sweep()
    await away.close()
    await asyncio.sleep(scan_interval(lease).total_seconds())
    with pytest.raises(StoreUnavailable):
        await sweeper.sweep()
    assert sweeper.suspected_runs == 0
    assert sandbox.query("SELECT state FROM chunks WHERE first_job_id = %s", claim.first_job_id) == [("running",)]


def plan(sandbox: Sandbox, statement: str) -> str:
    """The plan, as JSON text."""
    return json.dumps(sandbox.query(f"EXPLAIN (FORMAT JSON) {statement}")[0][0])


async def test_looking_at_a_large_table_reads_partial_indexes_alone(database: Database, sandbox: Sandbox) -> None:
    sandbox.query(
        """INSERT INTO chunks (first_job_id, rows, model, lane, state, finished_at)
           SELECT 100000 + n, 1, 'm', 'bulk', 'done', now() - interval '1 day' FROM generate_series(1, 50000) n"""
    )
    sandbox.query("ANALYZE chunks")
    await batch(database, 10)
    expired_leases = recovery._OVERDUE.replace("%(lease)s", "'20 s'")
    for statement, index in (
        (expired_leases, "ix_chunks_running"),
        (recovery._RUNNABLE, "ix_chunks_queued"),
        (recovery._DUE, "ix_chunks_"),
    ):
        found = plan(sandbox, statement)
        assert index in found, statement
        assert "Seq Scan" not in found, statement
