"""Recovery: requeue the chunks of lost workers, and keep a doorbell for every queued chunk."""

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta

import structlog

from pipeline.broker import MAX_OPEN_DOORBELLS, Notifier, Publisher
from pipeline.jobs.notify import notify_settled_without_run
from pipeline.models import Models
from pipeline.operations.pruning import prune
from pipeline.policies.leases import scan_interval
from pipeline.store import Database, batch_life, recovery
from pipeline.store.cancellation import SettledWithoutRun
from pipeline.store.recovery import LeaseSighting, RunnableChunks
from pipeline.streams import StreamWriter
from schemas.doorbells import Doorbell, queue_name
from schemas.errors import BrokerUnavailable, StoreUnavailable

_log = structlog.get_logger(__name__)
SWEEP_INTERVAL = timedelta(seconds=1)
"""How often it publishes doorbells for queued chunks, and expires jobs."""

_PRUNE_SECONDS = 3_600.0
_SLICE_SECONDS = 0.2
_MOST_CHUNKS = 1_024


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one sweep did.

    Attributes:
        unknown_models: have queued chunks and no entry in models.toml.
        more_expired: whether more jobs are past their deadline: sweep again at once.
    """

    requeued_chunks: int
    poison_jobs: int
    expired_jobs: int
    doorbells: int
    unknown_models: frozenset[str] = frozenset()
    more_expired: bool = False

    def __add__(self, later: "Sweep") -> "Sweep":
        return Sweep(
            self.requeued_chunks + later.requeued_chunks,
            self.poison_jobs + later.poison_jobs,
            self.expired_jobs + later.expired_jobs,
            self.doorbells + later.doorbells,
            later.unknown_models,
            later.more_expired,
        )


class Recovery:
    """Sweeps. Its only state is which leases had expired at the last scan, and when that was.

    Any number of processes may sweep at once; each must itself see an expired lease twice before it
    requeues the chunk.

    Args:
        database: where chunks are.
        publisher: publishes doorbells.
        notifier: notifies callers of jobs that it settles.
        streams: ends the streams of such jobs.
        models: entries of models.toml.
        lease: as the workers have it.
    """

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        notifier: Notifier,
        streams: StreamWriter,
        models: Models,
        lease: timedelta,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._notifier = notifier
        self._streams = streams
        self._models = models
        self._lease = lease
        self._scan_seconds = scan_interval(lease).total_seconds()
        self._expired_leases: frozenset[LeaseSighting] = frozenset()
        self._scanned_at: float | None = None
        self._expire_chunks = 1

    async def sweep(self) -> Sweep:
        """Requeue lost chunks, expire jobs, and publish open doorbells for queued chunks.

        A queue gets as many as it has queued chunks, at most MAX_OPEN_DOORBELLS, less those in it.
        Safe to call anywhere, any number of times.

        Raises:
            StoreUnavailable, BrokerUnavailable: nothing is lost; call again.
        """
        requeued, poison = await self._requeue_lost()
        expired, more = await self._expire()
        await notify_settled_without_run(self._notifier, self._streams, [*poison, *expired])
        for batch, canary in (await batch_life.decide_canaries(self._database)).items():
            _log.info("the canary of a batch has run", batch=batch, canary=canary)
        known = {entry.name for entry in self._models}
        runnable = await recovery.runnable_chunks(self._database, MAX_OPEN_DOORBELLS)
        doorbells = await self._publish_doorbells([chunks for chunks in runnable if chunks.model in known])
        unknown_models = frozenset(chunks.model for chunks in runnable) - known
        return Sweep(requeued, len(poison), len(expired), doorbells, unknown_models, more)

    @property
    def suspected_runs(self) -> int:
        """Runs whose lease had expired at the last scan: the next scan shows whether their worker is lost."""
        return len(self._expired_leases)

    async def _publish_doorbells(self, runnable: list[RunnableChunks]) -> int:
        if not runnable:
            return 0
        depths = await self._publisher.depths(queue_name(chunks.model, chunks.lane) for chunks in runnable)
        doorbells = [
            Doorbell(model=chunks.model, lane=chunks.lane)
            for chunks in runnable
            for _ in range(min(chunks.chunks, MAX_OPEN_DOORBELLS) - depths[queue_name(chunks.model, chunks.lane)])
        ]
        if doorbells:
            await self._publisher.publish(doorbells)
        return len(doorbells)

    async def _expire(self) -> tuple[list[SettledWithoutRun], bool]:
        """Expire jobs for a moment: what is left waits for the next sweep, so that lost chunks never wait for it."""
        expired: list[SettledWithoutRun] = []
        end = time.monotonic() + _SLICE_SECONDS
        while True:
            started = time.monotonic()
            settled = await recovery.expire(self._database, self._expire_chunks)
            now = time.monotonic()
            expired += settled
            if now - started > _SLICE_SECONDS / 2:
                self._expire_chunks = max(1, self._expire_chunks // 2)
            elif now - started < _SLICE_SECONDS / 8:
                self._expire_chunks = min(_MOST_CHUNKS, self._expire_chunks * 2)
            if not settled or now >= end:
                return expired, bool(settled)

    async def _requeue_lost(self) -> tuple[int, list[SettledWithoutRun]]:
        now = time.monotonic()
        if self._scanned_at is not None and now - self._scanned_at < self._scan_seconds:
            return 0, []
        before = self._expired_leases
        self._expired_leases = frozenset()  # if this scan fails, the next one begins fresh
        expired = await recovery.expired_leases(self._database, self._lease)
        unrenewed = expired & before
        requeued, poison = await recovery.requeue_lost(self._database, unrenewed) if unrenewed else (0, [])
        self._expired_leases, self._scanned_at = expired - unrenewed, now
        return requeued, poison

    async def sweep_forever(self) -> None:
        """Sweep once a second until cancelled; while a service is unavailable it waits."""
        unavailable, unknown_models = False, frozenset[str]()
        pruned_at = -_PRUNE_SECONDS
        while True:
            pause = SWEEP_INTERVAL.total_seconds()
            try:
                done = await self.sweep()
                if time.monotonic() - pruned_at > _PRUNE_SECONDS:
                    await prune(self._database)
                    pruned_at = time.monotonic()
            except (StoreUnavailable, BrokerUnavailable) as error:
                if not unavailable:
                    _log.warning("recovery waits for a service", reason=error.message)
                unavailable = True
            else:
                if unavailable:
                    _log.info("recovery continues")
                unavailable = False
                _log_sweep(done, new_unknown=done.unknown_models != unknown_models)
                unknown_models = done.unknown_models
                pause = 0.0 if done.more_expired else pause
            await asyncio.sleep(pause)


def _log_sweep(done: Sweep, *, new_unknown: bool) -> None:
    if done.unknown_models and new_unknown:
        _log.warning("chunks are queued for models that are not in models.toml", models=sorted(done.unknown_models))
    if done.requeued_chunks or done.poison_jobs:
        _log.warning("chunks of lost workers were requeued", chunks=done.requeued_chunks, poison_jobs=done.poison_jobs)
