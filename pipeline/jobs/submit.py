"""Jobs are checked, routed, stored, and a doorbell rings: the first half of a job's life."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import structlog

from pipeline.broker import WINDOW, Bells
from pipeline.images import ImageDoor
from pipeline.jobs.admission import QueueLimits
from pipeline.kinds.cache_key import payload_hash
from pipeline.models import Models
from pipeline.policies.chunking import INTERACTIVE_CHUNK_ROWS, LARGEST_CHUNK_BYTES, Coalescer, chunk_rows
from pipeline.policies.routing import route
from pipeline.store import Database, queries, submission
from pipeline.store.ids import JobIds
from pipeline.store.submission import NewChunk, NewJob, Stored
from schemas.doorbells import Doorbell, Lane
from schemas.errors import BrokerUnavailable, InvalidJob, UnknownModel
from schemas.ids import BatchId, JobId
from schemas.jobs import Job, VisionJob, canonical, parse_job

_log = structlog.get_logger(__name__)
MAX_BATCH_JOBS = 1_000_000
_LARGEST_GROUP = 256


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs that were submitted together, in their order."""

    batch_id: BatchId
    job_ids: Sequence[JobId]


class Submitter:
    """Stores jobs and rings for them.

    Args:
        images: looks at the pictures of vision jobs.
        reply_to: the channel on which this producer hears of its settled jobs.
    """

    def __init__(
        self, models: Models, database: Database, bells: Bells, images: ImageDoor, reply_to: str | None
    ) -> None:
        self._models = models
        self._database = database
        self._bells = bells
        self._images = images
        self._reply_to = reply_to
        self._ids = JobIds(database)
        self._limits = QueueLimits(models, database)
        self._one: Coalescer[NewJob, JobId] = Coalescer(
            self._flush, largest=_LARGEST_GROUP, weight=lambda job: len(job.request), heaviest=LARGEST_CHUNK_BYTES
        )

    async def submit(self, job: Job | dict[str, Any]) -> JobId:
        """Store a job that somebody waits for.

        Jobs that are submitted while another submission of this process is under way share the next chunk and message.
        With an idempotency key it is safe to call again; without, a call again makes another job.

        Raises:
            InvalidJob, UnknownModel, DuplicateJob: refused, nothing stored.
            QueueSaturated: too much is queued; nothing stored, come again when it says.
            StoreUnavailable: nothing is known to be stored.
        """
        return await self._one(await self._checked(job))

    async def submit_many(
        self,
        jobs: Iterable[Job | dict[str, Any]],
        *,
        name: str = "batch",
        tenant: str = "default",
        idempotency_key: str | None = None,
    ) -> Batch:
        """Store jobs for the bulk lane, all or none, in their order.

        Raises:
            InvalidJob, UnknownModel: naming the position of the job; nothing stored.
            DuplicateJob: the key was used for other jobs.
            QueueSaturated: too much is queued; nothing stored, come again when it says.
            StoreUnavailable: nothing is known to be stored.
        """
        for field, value in (("name", name), ("tenant", tenant), ("idempotency_key", idempotency_key or "-")):
            if not value or len(value) > 200 or "\x00" in value:
                raise InvalidJob(f"{field}: must hold 1 to 200 characters, and no NUL")
        new: list[NewJob] = []
        digest = sha256()
        for position, job in enumerate(jobs):
            if position >= MAX_BATCH_JOBS:
                raise InvalidJob(f"a batch holds at most {MAX_BATCH_JOBS:,} jobs; submit the rest as another")
            try:
                checked = await self._checked(job)
            except (InvalidJob, UnknownModel) as error:
                raise type(error)(f"job {position}: {error.message}", position=position) from error
            if checked.idempotency_key is not None:
                raise InvalidJob(
                    f"job {position}: idempotency_key: in a batch the batch carries the key", position=position
                )
            digest.update(checked.payload_hash)
            if position % 1_000 == 999:
                await asyncio.sleep(0)  # other callers of this loop go on
            new.append(checked)
        if not new:
            raise InvalidJob("a batch holds at least one job")
        rates = {model: await queries.rows_per_second(self._database, model) for model in {job.model for job in new}}
        slowest = min((rate for rate in rates.values() if rate is not None), default=None)
        await self._limits.look()
        with self._limits.batch(new, tenant) as admit:
            stored = await submission.insert_batch(
                self._database,
                self._ids,
                new,
                name=name,
                tenant=tenant,
                idempotency_key=idempotency_key,
                payload_hash=digest.digest()[:16],
                chunk_rows=chunk_rows(len(new), slowest),
                admit=admit,
            )
        await self._ring(_permits(stored.chunks))
        return Batch(stored.batch_id, stored.job_ids)

    async def _checked(self, job: Job | dict[str, Any]) -> NewJob:
        checked = parse_job(job)
        entry = route(checked, self._models)
        request = canonical(checked)
        said = payload_hash(checked, request)  # of the pictures as they came: another Pillow writes other bytes
        if isinstance(checked, VisionJob):
            request = canonical(await self._images.admitted(checked))
        return NewJob(
            kind=checked.kind,
            tenant=checked.tenant,
            request=request,
            model=entry.name,
            priority=checked.priority,
            deadline=checked.deadline,
            idempotency_key=checked.idempotency_key,
            payload_hash=said,
        )

    async def _flush(self, new: list[NewJob]) -> Sequence[JobId | BaseException]:
        twice = _repeated_keys(new)
        first = [job for i, job in enumerate(new) if i not in twice]
        stored = dict(zip([i for i in range(len(new)) if i not in twice], await self._store(first), strict=True))
        if twice:
            # The same key twice at once: the second is looked up after the first is stored.
            again = await self._store([new[i] for i in twice])
            stored |= dict(zip(twice, again, strict=True))
        return [stored[i] for i in range(len(new))]

    async def _store(self, new: Sequence[NewJob]) -> list[JobId | BaseException]:
        await self._limits.look()
        entries = await submission.insert_interactive(
            self._database,
            self._ids,
            new,
            reply_to=self._reply_to,
            chunk_rows=INTERACTIVE_CHUNK_ROWS,
            admit=self._limits.admit_one,
        )
        chunks = [chunk for entry in entries if isinstance(entry, Stored) for chunk in entry.chunks]
        await self._ring(
            [Doorbell(model=chunk.model, lane=Lane.INTERACTIVE, chunk=chunk.first_job_id) for chunk in chunks]
        )
        return [entry.job_ids[0] if isinstance(entry, Stored) else entry for entry in entries]

    async def _ring(self, doorbells: Sequence[Doorbell]) -> None:
        if not doorbells:
            return
        try:
            await self._bells.ring(doorbells)
        except BrokerUnavailable as error:
            # The jobs are rows: recovery rings for them as soon as the broker is back.
            _log.warning("jobs are stored, their doorbell was not rung", reason=error.message)


def _repeated_keys(new: Sequence[NewJob]) -> list[int]:
    seen: set[tuple[str, str]] = set()
    repeated = []
    for i, job in enumerate(new):
        if job.idempotency_key is not None:
            if (job.tenant, job.idempotency_key) in seen:
                repeated.append(i)
            seen.add((job.tenant, job.idempotency_key))
    return repeated


def _permits(chunks: Sequence[NewChunk]) -> list[Doorbell]:
    """One permit a chunk and model, at most a window of them."""
    counts: dict[str, int] = {}
    for chunk in chunks:
        counts[chunk.model] = min(counts.get(chunk.model, 0) + 1, WINDOW)
    return [Doorbell(model=model, lane=Lane.BULK) for model, count in counts.items() for _ in range(count)]


__all__ = ["MAX_BATCH_JOBS", "Batch", "Submitter"]
