"""Who is lost, and who only seems so; what recovery costs while nothing happens."""

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from stored import GONE, LEASE, batch, report, take
from support import Place

from pipeline.operations.recovery import Reach, Recovery
from pipeline.policies.leases import beat, scan
from pipeline.store import Database, claims, recovery, settlement
from pipeline.store.claims import Claim
from schemas.errors import StoreUnavailable


def test_a_scan_is_longer_than_a_beat_and_a_lost_worker_is_found_within_half_a_minute() -> None:
    for seconds in (1.0, 2.0, 20.0, 3_600.0):
        lease = timedelta(seconds=seconds)
        assert beat(lease) < scan(lease) <= timedelta(seconds=5)
    default = timedelta(seconds=20)
    assert default + 2 * scan(default) <= timedelta(seconds=30)


async def overdue_claim(database: Database) -> Claim:
    await batch(database, 10)
    claim = await take(database, lease=GONE)
    assert claim is not None
    return claim


async def test_a_beat_between_two_looks_saves_a_run(database: Database) -> None:
    claim = await overdue_claim(database)
    first = await recovery.overdue(database, LEASE)
    assert [found.first_job_id for found in first] == [claim.first_job_id]
    assert await claims.renew(database, [claim.run_id], LEASE) == {claim.run_id: 0}
    assert await recovery.return_lost(database, first) == (0, [])
    assert await settlement.settle(database, [report(claim)]) == {(claim.first_job_id, claim.fence)}


async def test_a_lease_that_ends_later_than_it_can_is_over(database: Database, place: Place) -> None:
    """The database's clock was set back by an hour after the worker's last beat."""
    await overdue_claim(database)
    place.query("UPDATE chunks SET lease_expires_at = now() + interval '1 hour'")
    assert await recovery.return_lost(database, await recovery.overdue(database, LEASE)) == (1, [])


async def test_a_chunk_that_was_to_wait_is_due_when_the_clock_was_set_back(database: Database, place: Place) -> None:
    await batch(database, 1)
    place.query("UPDATE chunks SET due_at = now() + interval '1 minute'")
    assert await take(database) is None
    place.query("UPDATE chunks SET due_at = now() + interval '1 hour'")
    assert [waiting.chunks for waiting in await recovery.waiting(database)] == [1]
    assert await take(database) is not None


async def test_many_at_once_return_a_lost_chunk_once(database: Database, place: Place) -> None:
    await overdue_claim(database)
    silent = await recovery.overdue(database, LEASE)
    done = await asyncio.gather(*[recovery.return_lost(database, silent) for _ in range(8)])
    assert sum(returned for returned, _ in done) == 1
    assert place.query("SELECT count(*), sum(rows), min(fence), max(fence) FROM chunks") == [(2, 10, 2, 2)]


@dataclass
class _Nobody:
    """A broker that is never asked, since nothing is queued."""

    streams: Any = None

    def end(self, _: object) -> None:
        assert not list(_)  # type: ignore[call-overload]


async def test_recovery_takes_a_run_at_the_second_look_and_never_at_the_first(database: Database, place: Place) -> None:
    lease = timedelta(seconds=1)
    sweeper = Recovery(Reach(database, None, None, _Nobody()), [], lease)  # type: ignore[arg-type]
    await overdue_claim(database)
    assert (await sweeper.sweep()).returned_chunks == 0
    assert sweeper.suspects == 1
    assert (await sweeper.sweep()).returned_chunks == 0, "the same look, a moment later"
    await asyncio.sleep(scan(lease).total_seconds())
    assert (await sweeper.sweep()).returned_chunks == 1
    assert place.query("SELECT DISTINCT state FROM chunks") == [("queued",)]


async def test_a_look_that_failed_proves_nothing(database: Database, place: Place) -> None:
    """After an outage everybody's lease is over: the looks begin anew, and the workers beat in between."""
    lease = timedelta(seconds=1)
    away = await Database(place.database_url).open()
    sweeper = Recovery(Reach(away, None, None, _Nobody()), [], lease)  # type: ignore[arg-type]
    claim = await overdue_claim(database)
    await sweeper.sweep()
    await away.close()
    await asyncio.sleep(scan(lease).total_seconds())
    with pytest.raises(StoreUnavailable):
        await sweeper.sweep()
    assert sweeper.suspects == 0
    assert place.query("SELECT state FROM chunks WHERE first_job_id = %s", claim.first_job_id) == [("running",)]


def plan(place: Place, statement: str) -> str:
    """The plan, as JSON text."""
    return json.dumps(place.query(f"EXPLAIN (FORMAT JSON) {statement}")[0][0])


async def test_looking_at_a_large_table_reads_partial_indexes_alone(database: Database, place: Place) -> None:
    place.query(
        """INSERT INTO chunks (first_job_id, rows, model, lane, state, finished_at)
           SELECT 100000 + n, 1, 'm', 'bulk', 'done', now() - interval '1 day' FROM generate_series(1, 50000) n"""
    )
    place.query("ANALYZE chunks")
    await batch(database, 10)
    overdue = recovery._OVERDUE.replace("%(lease)s", "'20 s'")
    for statement, index in (
        (overdue, "ix_chunks_running"),
        (recovery._WAITING, "ix_chunks_queued"),
        (recovery._DUE, "ix_chunks_"),
    ):
        found = plan(place, statement)
        assert index in found, statement
        assert "Seq Scan" not in found, statement
