"""Recovery: lost leases go back, and every queued chunk has a doorbell. The only place where something is repeated."""

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta

import structlog

from pipeline.broker import WINDOW, Bells, Whispers
from pipeline.jobs.notify import tell
from pipeline.models import Models
from pipeline.policies.leases import scan
from pipeline.store import Database, answer_cache, endpoint_samples, recovery
from pipeline.store.recovery import Beat
from pipeline.store.settlement import SettledOutside
from pipeline.streams.writer import StreamWriter
from schemas.doorbells import Doorbell, queue_name
from schemas.errors import BrokerUnavailable, StoreUnavailable

_log = structlog.get_logger(__name__)
SWEEP = timedelta(seconds=1)
"""How often it rings for what is queued, and expires what waited too long."""

_TIDY_SECONDS = 3_600.0


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one sweep did. `unknown_models` have queued chunks and no entry in models.toml."""

    returned_chunks: int
    poison_jobs: int
    expired_jobs: int
    permits: int
    unknown_models: frozenset[str] = frozenset()

    def __add__(self, later: "Sweep") -> "Sweep":
        return Sweep(
            self.returned_chunks + later.returned_chunks,
            self.poison_jobs + later.poison_jobs,
            self.expired_jobs + later.expired_jobs,
            self.permits + later.permits,
            later.unknown_models,
        )


@dataclass(frozen=True, slots=True)
class Reach:
    """What recovery works with."""

    database: Database
    bells: Bells
    whispers: Whispers
    streams: StreamWriter


class Recovery:
    """Sweeps. It remembers only which runs had outlived their lease when it last looked, and when that was.

    Any number of processes may do this at once; each must itself have seen a run twice before it takes it from its worker.

    Args:
        lease: as the workers have it.
    """

    def __init__(self, reach: Reach, models: Models, lease: timedelta) -> None:
        self._reach = reach
        self._models = models
        self._lease = lease
        self._scan_seconds = scan(lease).total_seconds()
        self._overdue: frozenset[Beat] = frozenset()
        self._looked_at: float | None = None

    async def sweep(self) -> Sweep:
        """Return lost leases, expire what waited too long, then top permits up to the queued chunks or the window, less what
        is in the queue.

        Safe to run anywhere, any number of times.

        Raises:
            StoreUnavailable, BrokerUnavailable: nothing is lost; call again.
        """
        reach = self._reach
        returned, poison = await self._return_lost()
        expired = await recovery.expire(reach.database)
        await tell(reach.whispers, reach.streams, [*poison, *expired])
        known = {entry.name for entry in self._models}
        everything = await recovery.waiting(reach.database)
        waiting = [found for found in everything if found.model in known]
        depths = await reach.bells.depths(queue_name(found.model, found.lane) for found in waiting) if waiting else {}
        permits = [
            Doorbell(model=found.model, lane=found.lane)
            for found in waiting
            for _ in range(min(found.chunks, WINDOW) - depths[queue_name(found.model, found.lane)])
        ]
        if permits:
            await reach.bells.ring(permits)
        strangers = frozenset(found.model for found in everything) - known
        return Sweep(returned, len(poison), len(expired), len(permits), strangers)

    @property
    def suspects(self) -> int:
        """Runs that had outlived their lease at the last look: the next one tells whether their worker is lost."""
        return len(self._overdue)

    async def _return_lost(self) -> tuple[int, list[SettledOutside]]:
        now = time.monotonic()
        if self._looked_at is not None and now - self._looked_at < self._scan_seconds:
            return 0, []
        before, self._overdue = self._overdue, frozenset()  # if this look fails, the next one begins anew
        overdue = await recovery.overdue(self._reach.database, self._lease)
        silent = overdue & before
        returned, poison = await recovery.return_lost(self._reach.database, silent) if silent else (0, [])
        self._overdue, self._looked_at = overdue - silent, now
        return returned, poison

    async def sweep_forever(self) -> None:
        """Sweep once a second until cancelled; an outage of a server is waited out."""
        away, strangers = False, frozenset[str]()
        tidied = -_TIDY_SECONDS
        while True:
            try:
                done = await self.sweep()
                if time.monotonic() - tidied > _TIDY_SECONDS:
                    await tidy(self._reach.database)
                    tidied = time.monotonic()
            except (StoreUnavailable, BrokerUnavailable) as error:
                if not away:
                    _log.warning("recovery waits", reason=error.message)
                away = True
            else:
                if away:
                    _log.info("recovery goes on")
                away = False
                if done.unknown_models != strangers:
                    strangers = done.unknown_models
                    if strangers:
                        _log.warning("chunks wait for models that are not in models.toml", models=sorted(strangers))
                if done.returned_chunks or done.poison_jobs:
                    _log.warning(
                        "chunks of lost workers went back", chunks=done.returned_chunks, poison_jobs=done.poison_jobs
                    )
            await asyncio.sleep(SWEEP.total_seconds())


async def tidy(database: Database) -> None:
    """Delete what was kept for a while: samples of endpoints, and answers by question.

    Raises:
        StoreUnavailable: call again.
    """
    samples_gone, answers_gone = await endpoint_samples.forget_old(database), await answer_cache.forget_old(database)
    if samples_gone or answers_gone:
        _log.info("tidied", samples=samples_gone, answers=answers_gone)


__all__ = ["SWEEP", "Reach", "Recovery", "Sweep", "tidy"]
