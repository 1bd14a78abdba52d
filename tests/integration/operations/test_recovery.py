"""Recovery: when a worker counts as lost, and when not."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from pipeline.broker import Notifier, Publisher
from pipeline.models import Models
from pipeline.operations.recovery import Recovery
from pipeline.policies.leases import renewal_interval, scan_interval
from pipeline.store import Database
from pipeline.streams import StreamWriter
from schemas.errors import StoreUnavailable
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import EXPIRED, claim_queued, store_batch

LEASE = timedelta(seconds=1)


def test_a_scan_is_longer_than_a_renewal_and_finds_lost_workers_in_half_a_minute() -> None:
    for seconds in (1.0, 2.0, 20.0, 3_600.0):
        lease = timedelta(seconds=seconds)
        assert renewal_interval(lease) < scan_interval(lease) <= timedelta(seconds=5)
    default = timedelta(seconds=20)
    assert default + 2 * scan_interval(default) <= timedelta(seconds=30)


class Clock:
    """The monotonic clock of recovery, moved by the test."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def monotonic(self) -> float:
        return self.seconds

    def pass_scan_interval(self) -> None:
        self.seconds += scan_interval(LEASE).total_seconds()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("pipeline.operations.recovery.time", made)
    return made


class Connections:
    """The broker's side of recovery; with an unknown model nothing is published."""

    def __init__(self, redis_url: str) -> None:
        self.publisher = Publisher(redis_url)
        self.notifier = Notifier(redis_url)
        self.streams = StreamWriter(redis_url)

    def recovery(self, database: Database) -> Recovery:
        return Recovery(database, self.publisher, self.notifier, self.streams, Models({}), LEASE)

    async def close(self) -> None:
        await self.streams.close()
        await self.notifier.close()
        await self.publisher.close()


@pytest.fixture
async def connections(sandbox: Sandbox) -> AsyncIterator[Connections]:
    opened = Connections(sandbox.redis_url)
    yield opened
    await opened.close()


async def test_a_run_is_requeued_at_the_second_scan_and_not_at_the_first(
    database: Database, sandbox: Sandbox, connections: Connections, clock: Clock
) -> None:
    sweeper = connections.recovery(database)
    await store_batch(database, 10)
    await claim_queued(database, lease=EXPIRED)
    assert (await sweeper.sweep()).requeued_chunks == 0
    assert sweeper.suspected_runs == 1
    assert (await sweeper.sweep()).requeued_chunks == 0, "the scan interval has not passed"
    clock.pass_scan_interval()
    swept = await sweeper.sweep()
    assert swept.requeued_chunks == 1
    assert swept.doorbells == 0
    assert swept.unknown_models == frozenset({"m"})
    assert sandbox.query("SELECT DISTINCT state FROM chunks") == [("queued",)]


async def test_a_scan_that_failed_proves_nothing(
    database: Database, sandbox: Sandbox, connections: Connections, clock: Clock
) -> None:
    """After an outage every lease has expired: the scans begin again, and workers renew in between."""
    unavailable = await Database(sandbox.database_url).open()
    sweeper = connections.recovery(unavailable)
    await store_batch(database, 10)
    claim = await claim_queued(database, lease=EXPIRED)
    await sweeper.sweep()
    assert sweeper.suspected_runs == 1
    await unavailable.close()
    clock.pass_scan_interval()
    with pytest.raises(StoreUnavailable):
        await sweeper.sweep()
    assert sweeper.suspected_runs == 0
    assert sandbox.query("SELECT state FROM chunks WHERE first_job_id = %s", claim.first_job_id) == [("running",)]
