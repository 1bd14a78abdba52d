"""Store how this process sees its endpoints, every few seconds, for `yyc3 queues`."""

import asyncio
from collections.abc import Mapping

import structlog

from pipeline.engine import EnginePool
from pipeline.store import Database, endpoint_samples
from pipeline.store.endpoint_samples import SAMPLE_SECONDS, EndpointSample
from schemas.doorbells import Lane
from schemas.errors import StoreError
from workers.execution.scheduler import Scheduler

_log = structlog.get_logger(__name__)


async def sample_forever(
    database: Database,
    pools: Mapping[str, EnginePool],
    schedulers: Mapping[str, Scheduler],
    worker: str,
    lane: Lane,
) -> None:
    """Sample the endpoints that are in use or down, until cancelled."""
    while True:
        await asyncio.sleep(SAMPLE_SECONDS)
        samples = [
            EndpointSample(
                worker=worker, endpoint=url, model=name, lane=lane, waiting_rows=schedulers[name].waiting, **figures
            )
            for name, pool in pools.items()
            for url, figures in pool.take_samples(SAMPLE_SECONDS).items()
        ]
        try:
            if samples:
                await endpoint_samples.write(database, samples)
        except StoreError as error:
            _log.warning("endpoints were not sampled", reason=error.message)
