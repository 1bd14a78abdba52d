"""Recovery: lost leases go back, and every queued chunk has a doorbell. The only place where something is repeated."""

import asyncio
import time
from dataclasses import dataclass

import structlog

from pipeline.broker import WINDOW, Bells, Whispers
from pipeline.models import Models
from pipeline.store import Database, answers, recovery, samples
from pipeline.streams import StreamWriter
from pipeline.telling import tell
from schemas.errors import BrokerUnavailable, StoreUnavailable
from schemas.messages import Doorbell, queue_name

_log = structlog.get_logger(__name__)
SWEEP_SECONDS = 1.0
_TIDY_SECONDS = 3_600.0


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one sweep did. `unknown_models` have queued chunks and no entry in models.toml."""

    returned_chunks: int
    poison_jobs: int
    expired_jobs: int
    permits: int
    unknown_models: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Reach:
    """What recovery works with."""

    database: Database
    bells: Bells
    whispers: Whispers
    streams: StreamWriter


async def sweep(reach: Reach, models: Models) -> Sweep:
    """Return lost leases, expire what waited too long, then top permits up to the queued chunks or the window, less what is
    in the queue.

    Safe to run anywhere, any number of times.

    Raises:
        StoreUnavailable, BrokerUnavailable: nothing is lost; call again.
    """
    returned, poison = await recovery.return_lost(reach.database)
    expired = await recovery.expire(reach.database)
    await tell(reach.whispers, reach.streams, [*poison, *expired])
    known = {entry.name for entry in models}
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


async def tidy(database: Database) -> None:
    """Delete what was kept for a while: samples of endpoints, and answers by question.

    Raises:
        StoreUnavailable: call again.
    """
    samples_gone, answers_gone = await samples.forget_old(database), await answers.forget_old(database)
    if samples_gone or answers_gone:
        _log.info("tidied", samples=samples_gone, answers=answers_gone)


async def sweep_forever(reach: Reach, models: Models) -> None:
    """Sweep once a second until cancelled; an outage of a server is waited out."""
    away, strangers = False, frozenset[str]()
    tidied = -_TIDY_SECONDS
    while True:
        try:
            done = await sweep(reach, models)
            if time.monotonic() - tidied > _TIDY_SECONDS:
                await tidy(reach.database)
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
        await asyncio.sleep(SWEEP_SECONDS)


__all__ = ["SWEEP_SECONDS", "Reach", "Sweep", "sweep", "sweep_forever", "tidy"]
