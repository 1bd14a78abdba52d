"""Delete what is kept for a limited time: endpoint samples, cached answers, lost processes; expire batches left half-read."""

import structlog

from pipeline.store import Database, answer_cache, batch_life, custom_ids, endpoint_samples, processes, usage

_log = structlog.get_logger(__name__)


async def prune(database: Database) -> None:
    """Delete old endpoint samples, entries of the answer cache and processes; expire batches whose file was left half-read.

    Raises:
        StoreUnavailable: call again.
    """
    samples, answers = await endpoint_samples.delete_old(database), await answer_cache.delete_old(database)
    lost = await processes.delete_old(database)
    await batch_life.expire_abandoned(database)
    await custom_ids.forget_ended(database)
    await usage.delete_old(database)
    if samples or answers or lost:
        _log.info("pruned", samples=samples, answers=answers, processes=lost)
