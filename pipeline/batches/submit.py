"""Store a batch for the bulk lane, all jobs or none, and publish its doorbells."""

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pipeline.broker import MAX_OPEN_DOORBELLS, Publisher
from pipeline.jobs.admission import QueueLimits
from pipeline.jobs.preparation import Preparer
from pipeline.jobs.submit import publish_doorbells
from pipeline.policies.chunking import chunk_rows
from pipeline.store import Database, batches, queries
from pipeline.store.batches import NewBatch
from pipeline.store.ids import JobIds
from pipeline.store.new_rows import NewChunk, NewJob
from schemas.doorbells import Doorbell, Lane
from schemas.errors import InvalidJob, UnknownModel
from schemas.ids import BatchId, JobId
from schemas.job import TENANT_PATTERN, Job, can_be_stored

MAX_BATCH_JOBS = 1_000_000
_YIELD_JOBS = 1_000


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs that were submitted together, in their order."""

    batch_id: BatchId
    job_ids: Sequence[JobId]


class BatchSubmitter:
    """Stores batches and publishes their doorbells.

    Args:
        database: where jobs are stored.
        publisher: publishes doorbells.
        preparer: checks jobs.
        ids: allocates job ids.
        limits: of the queues.
    """

    def __init__(
        self, database: Database, publisher: Publisher, preparer: Preparer, ids: JobIds, limits: QueueLimits
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._preparer = preparer
        self._ids = ids
        self._limits = limits

    async def submit_many(
        self,
        jobs: Iterable[Job | dict[str, Any]],
        *,
        name: str = "batch",
        tenant: str | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Store jobs for the bulk lane, all or none, in their order.

        All jobs belong to one tenant: `tenant`, or without it the one that the first job names.

        Raises:
            InvalidJob, UnknownModel: names the position of the job; nothing was stored.
            DuplicateJob: the key was used for other jobs.
            QueueSaturated: the queue is full; nothing was stored, `retry_after_seconds` says when to submit again.
            StoreUnavailable: nothing is known to be stored.
        """
        for field, value in (("name", name), ("idempotency_key", idempotency_key or "-")):
            if not value or len(value) > 200 or not can_be_stored(value):
                raise InvalidJob(f"{field}: must have 1 to 200 characters, without NUL and without half characters")
        if tenant is not None and not re.fullmatch(TENANT_PATTERN, tenant):
            raise InvalidJob("tenant: must have 1 to 64 letters, digits, dots, dashes or underlines of ASCII")
        new = await self._prepare_all(jobs, tenant)
        tenant = new[0].tenant
        digest = sha256(b"".join(job.payload_hash for job in new)).digest()[:16]
        models = {job.model for job in new}
        slots = max(self._preparer.slots(model) for model in models)
        rows = chunk_rows(len(new), await self._slowest_rate(models), slots)
        await self._limits.refresh()
        with self._limits.reserve_batch(new, tenant) as admit:
            stored = await batches.insert_batch(
                self._database,
                self._ids,
                new,
                NewBatch(name, tenant, idempotency_key, digest),
                chunk_rows=rows,
                admit=admit,
            )
        await publish_doorbells(self._publisher, _open_doorbells(stored.chunks))
        return Batch(stored.batch_id, stored.job_ids)

    async def _prepare_all(self, jobs: Iterable[Job | dict[str, Any]], tenant: str | None) -> list[NewJob]:
        new: list[NewJob] = []
        for position, job in enumerate(jobs):
            if position >= MAX_BATCH_JOBS:
                raise InvalidJob(f"a batch has at most {MAX_BATCH_JOBS:,} jobs; submit the rest as another batch")
            try:
                prepared = await self._preparer.prepare(job, tenant)
            except (InvalidJob, UnknownModel) as error:
                raise type(error)(f"job {position}: {error.message}", position=position) from error
            if prepared.idempotency_key is not None:
                raise InvalidJob(
                    f"job {position}: idempotency_key: in a batch only the batch has a key; leave it out",
                    position=position,
                )
            tenant = tenant or prepared.tenant
            new.append(prepared)
            if position % _YIELD_JOBS == _YIELD_JOBS - 1:
                await asyncio.sleep(0)  # let other callers of this loop run
        if not new:
            raise InvalidJob("a batch has at least one job")
        return new

    async def _slowest_rate(self, models: Iterable[str]) -> float | None:
        rates = [await queries.rows_per_second(self._database, model) for model in models]
        return min((rate for rate in rates if rate is not None), default=None)


def _open_doorbells(chunks: Sequence[NewChunk]) -> list[Doorbell]:
    """One open doorbell for each chunk, at most MAX_OPEN_DOORBELLS for each model."""
    counts: dict[str, int] = {}
    for chunk in chunks:
        counts[chunk.model] = min(counts.get(chunk.model, 0) + 1, MAX_OPEN_DOORBELLS)
    return [Doorbell(model=model, lane=Lane.BULK) for model, count in counts.items() for _ in range(count)]
