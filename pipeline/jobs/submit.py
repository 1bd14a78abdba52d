"""Store a job that a caller waits for, and publish its doorbell."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from pipeline.broker import Publisher
from pipeline.concurrency.byte_budget import ByteBudget
from pipeline.concurrency.coalescer import Coalescer
from pipeline.jobs.admission import QueueLimits
from pipeline.jobs.preparation import Preparer, image_bytes
from pipeline.policies.chunking import INTERACTIVE_CHUNK_ROWS, LARGEST_CHUNK_BYTES
from pipeline.store import Database, submission
from pipeline.store.ids import JobIds
from pipeline.store.new_rows import NewJob
from schemas.doorbells import Doorbell, Lane
from schemas.errors import BrokerUnavailable, UnstorableValue
from schemas.ids import JobId
from schemas.job import Job

_log = structlog.get_logger(__name__)
_LARGEST_FLUSH = 256
_PUBLISH_SECONDS = 1.0  # a caller waits meanwhile, and recovery publishes it anyway


class Submitter:
    """Stores interactive jobs and publishes their doorbells.

    Args:
        database: where jobs are stored.
        publisher: publishes doorbells.
        preparer: checks jobs.
        ids: allocates job ids.
        limits: of the queues.
        reply_to: the channel on which this producer is notified of its settled jobs.
        on_stored: called with each job that was not stored before, before its doorbell is published.
    """

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        preparer: Preparer,
        ids: JobIds,
        limits: QueueLimits,
        reply_to: str | None,
        on_stored: Callable[[JobId], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._preparer = preparer
        self._ids = ids
        self._limits = limits
        self._reply_to = reply_to
        self._on_stored = on_stored
        self._budget = ByteBudget(LARGEST_CHUNK_BYTES)
        self._submit_coalesced: Coalescer[NewJob, JobId] = Coalescer(
            self._flush, largest=_LARGEST_FLUSH, weight=lambda job: len(job.request), heaviest=LARGEST_CHUNK_BYTES
        )

    async def submit(self, job: Job | dict[str, Any]) -> JobId:
        """Store a job that a caller waits for.

        Jobs that are submitted while another submission of this process is in flight share the next
        chunk and message. With an idempotency key it is safe to call again; without one, another call
        stores another job.

        Raises:
            InvalidJob, UnknownModel, DuplicateJob: refused, nothing was stored.
            QueueSaturated: the queue is full; nothing was stored, `retry_after_seconds` says when to submit again.
            StoreUnavailable: nothing is known to be stored.
        """
        async with self._budget.hold(image_bytes(job)):
            return await self._submit_coalesced(await self._preparer.prepare(job))

    async def _flush(self, new: list[NewJob]) -> Sequence[JobId | BaseException]:
        repeated = set(_repeated_keys(new))
        first = [index for index in range(len(new)) if index not in repeated]
        stored = dict(zip(first, await self._store([new[index] for index in first]), strict=True))
        for index in sorted(repeated):
            # The same key twice in one flush: the second is looked up after the first is stored.
            (stored[index],) = await self._store([new[index]])
        return [stored[index] for index in range(len(new))]

    async def _store(self, new: Sequence[NewJob]) -> Sequence[JobId | BaseException]:
        """Store jobs together; one that Postgres refuses is found, and costs no other."""
        await self._limits.refresh()
        try:
            stored = await submission.insert_interactive(
                self._database,
                self._ids,
                new,
                reply_to=self._reply_to,
                chunk_rows=INTERACTIVE_CHUNK_ROWS,
                admit=self._limits.admit_one,
            )
        except UnstorableValue as error:
            if len(new) == 1:
                return [error]
            half = len(new) // 2
            return [*await self._store(new[:half]), *await self._store(new[half:])]
        for chunk in stored.chunks:
            for job_id in range(chunk.first_job_id, chunk.first_job_id + chunk.rows):
                self._on_stored(JobId(job_id))
        doorbells = [
            Doorbell(model=chunk.model, lane=Lane.INTERACTIVE, chunk=chunk.first_job_id) for chunk in stored.chunks
        ]
        await publish_doorbells(self._publisher, doorbells)
        return stored.entries


def _repeated_keys(new: Sequence[NewJob]) -> list[int]:
    seen: set[tuple[str, str]] = set()
    repeated = []
    for index, job in enumerate(new):
        if job.idempotency_key is not None:
            if (job.tenant, job.idempotency_key) in seen:
                repeated.append(index)
            seen.add((job.tenant, job.idempotency_key))
    return repeated


async def publish_doorbells(publisher: Publisher, doorbells: Sequence[Doorbell]) -> None:
    """Publish doorbells of stored jobs; if the broker is unavailable, recovery publishes them when it is back."""
    if not doorbells:
        return
    try:
        async with asyncio.timeout(_PUBLISH_SECONDS):
            await publisher.publish(doorbells)
    except BrokerUnavailable as error:
        _log.warning("jobs are stored, their doorbell is published later", reason=error.message)
    except TimeoutError:
        _log.warning("jobs are stored, their doorbell is published later", reason="the message broker does not answer")
