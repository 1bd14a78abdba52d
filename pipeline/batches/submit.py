"""Store a batch for the bulk lane, all jobs or none, and publish its doorbells."""

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from pipeline.broker import MAX_OPEN_DOORBELLS, Publisher
from pipeline.jobs.admission import QueueLimits
from pipeline.jobs.preparation import Preparer
from pipeline.jobs.submit import publish_doorbells
from pipeline.policies.chunking import chunk_rows
from pipeline.store import Database, batches, queries
from pipeline.store.batch_rows import BatchRows
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
        with self.draft(name=name, tenant=tenant, idempotency_key=idempotency_key) as draft:
            await draft.add(several(jobs))
            return await draft.submit()

    def draft(self, *, name: str, tenant: str | None, idempotency_key: str | None) -> "BatchDraft":
        """Begin a batch whose jobs come little by little; see submit_many.

        Raises:
            InvalidJob: names the field.
        """
        check_names(name, tenant, idempotency_key)
        return BatchDraft(self, self._preparer, name, tenant, idempotency_key)

    async def store(self, rows: BatchRows, batch: NewBatch) -> Batch:
        """Store the rows of a draft and publish their doorbells."""
        await self._limits.refresh()
        with self._limits.reserve_batch(rows.jobs_of, batch.tenant) as admit:
            stored = await batches.insert_batch(self._database, self._ids, rows, batch, admit=admit)
        await publish_doorbells(self._publisher, open_doorbells(stored.chunks))
        return Batch(stored.batch_id, stored.job_ids)

    async def chunk_rows(self, rows: BatchRows) -> int:
        """Return the rows of a chunk, for the jobs that are known so far."""
        return await rows_of_chunk(self._database, self._preparer, rows.jobs_of)


async def rows_of_chunk(database: Database, preparer: Preparer, jobs_of: Mapping[str, int]) -> int:
    """Return the rows of a chunk, for these numbers of jobs of each model."""
    slots = max(preparer.slots(model) for model in jobs_of)
    rates = [await queries.rows_per_second(database, model) for model in jobs_of]
    return chunk_rows(sum(jobs_of.values()), min((rate for rate in rates if rate is not None), default=None), slots)


def check_names(name: Any, tenant: Any, idempotency_key: Any) -> None:
    """Check what names a batch.

    Raises:
        InvalidJob: names the field.
    """
    for field, value in (("name", name), ("idempotency_key", "-" if idempotency_key is None else idempotency_key)):
        if not isinstance(value, str) or not value or len(value) > 200 or not can_be_stored(value):
            raise InvalidJob(f"{field}: must be text of 1 to 200 characters, without NUL and without half characters")
    if tenant is not None and not (isinstance(tenant, str) and re.fullmatch(TENANT_PATTERN, tenant)):
        raise InvalidJob("tenant: must have 1 to 64 letters, digits, dots, dashes or underlines of ASCII")


def several(jobs: Any) -> Iterable[Job | dict[str, Any]]:
    """Return jobs that may be iterated.

    Raises:
        InvalidJob: it is one job, or none.
    """
    if isinstance(jobs, Job | Mapping | str | bytes) or not isinstance(jobs, Iterable):
        raise InvalidJob("jobs: give a list of jobs; submit takes a single one")
    return jobs


class BatchDraft:
    """Jobs of a batch that is not stored yet; a context manager. Its memory does not grow with their requests."""

    def __init__(
        self,
        submitter: BatchSubmitter,
        preparer: Preparer,
        name: str,
        tenant: str | None,
        idempotency_key: str | None,
    ) -> None:
        self._submitter = submitter
        self._preparer = preparer
        self._name = name
        self._tenant = tenant
        self._key = idempotency_key
        self._rows = BatchRows()
        self._chunk_rows: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._rows.__exit__(kind, value, traceback)

    async def add(self, jobs: Iterable[Job | dict[str, Any]]) -> None:
        """Check the next jobs, in their order.

        Raises:
            InvalidJob, UnknownModel: names the position of the job.
        """
        for position, job in enumerate(jobs, start=len(self._rows)):
            if position >= MAX_BATCH_JOBS:
                raise InvalidJob(f"a batch has at most {MAX_BATCH_JOBS:,} jobs; submit the rest as another batch")
            if self._rows.has_full_window:
                await self._close_window()
            self._rows.add(await self._prepare(job, position))
            if position % _YIELD_JOBS == _YIELD_JOBS - 1:
                await asyncio.sleep(0)  # let other callers of this loop run

    async def submit(self) -> Batch:
        """Store them, all or none; see BatchSubmitter.submit_many."""
        if not self._rows:
            raise InvalidJob("a batch has at least one job")
        await self._close_window()
        assert self._tenant is not None, "the first job has one"
        return await self._submitter.store(
            self._rows, NewBatch(self._name, self._tenant, self._key, self._rows.payload_hash)
        )

    async def _prepare(self, job: Job | dict[str, Any], position: int) -> NewJob:
        try:
            prepared = await self._preparer.prepare(job, self._tenant)
        except (InvalidJob, UnknownModel) as error:
            raise type(error)(f"job {position}: {error.message}", position=position) from error
        if prepared.idempotency_key is not None:
            raise InvalidJob(
                f"job {position}: idempotency_key: in a batch only the batch has a key; leave it out",
                position=position,
            )
        self._tenant = self._tenant or prepared.tenant
        return prepared

    async def _close_window(self) -> None:
        if self._chunk_rows is None:
            self._chunk_rows = await self._submitter.chunk_rows(self._rows)
        self._rows.close_window(self._chunk_rows)


def open_doorbells(chunks: Sequence[NewChunk]) -> list[Doorbell]:
    """One open doorbell for each chunk, at most MAX_OPEN_DOORBELLS for each model."""
    counts: dict[str, int] = {}
    for chunk in chunks:
        counts[chunk.model] = min(counts.get(chunk.model, 0) + 1, MAX_OPEN_DOORBELLS)
    return [Doorbell(model=model, lane=Lane.BULK) for model, count in counts.items() for _ in range(count)]
