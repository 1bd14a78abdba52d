"""Back-pressure: refuse jobs that would make a queue too long, with its depth and when to submit again."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from pipeline.models import ModelEntry, Models
from pipeline.store import Database, queue_depths
from pipeline.store.new_rows import NewJob
from pipeline.store.queue_depths import QueueDepth
from schemas.doorbells import Lane, queue_name
from schemas.errors import QueueSaturated

_REFRESH_SECONDS = 1.0
_SOONEST_SECONDS, _LATEST_SECONDS = 1.0, 600.0


class QueueLimits:
    """The queue limits of models.toml, as one producer enforces them.

    It reads the depths once a second and counts what it adds itself, so several producers together
    may exceed a limit by what they submit in a second. Running jobs do not count.
    """

    def __init__(self, models: Models, database: Database) -> None:
        self._models = models
        self._database = database
        self._depths: dict[tuple[str, Lane], QueueDepth] = {}
        self._refreshed_at: float | None = None
        self._refreshing = asyncio.Lock()
        self._reserved: Counter[tuple[str, str]] = Counter()

    async def refresh(self) -> None:
        """Read the depths, unless they were read within the last second. Call this before the other methods.

        Raises:
            StoreUnavailable: the depths are not known.
        """
        async with self._refreshing:
            now = time.monotonic()
            if self._refreshed_at is None or now - self._refreshed_at >= _REFRESH_SECONDS:
                self._depths = await queue_depths.queued(self._database)
                self._refreshed_at = now

    def admit_one(self, job: NewJob) -> QueueSaturated | None:
        """Count one more interactive job, or return why it is refused."""
        refusal = self._refusal(job.model, Lane.INTERACTIVE, job.tenant, 1)
        if refusal is None:
            self._add(job.model, Lane.INTERACTIVE, job.tenant, 1)
        return refusal

    @contextmanager
    def reserve_batch(self, jobs_of: Mapping[str, int], tenant: str) -> Iterator[Callable[[], None]]:
        """Reserve room for a batch of bulk jobs, counted by model, while it is being stored.

        Yields a function that reserves room for all jobs or raises QueueSaturated. Until its commit a
        batch is not part of the depths, so reservations are counted apart.
        """
        counts = Counter({(model, tenant): jobs for model, jobs in jobs_of.items()})
        reserved = Counter[tuple[str, str]]()

        def admit() -> None:
            for (model, _), count in counts.items():
                refusal = self._refusal(model, Lane.BULK, tenant, count)
                if refusal is not None:
                    raise refusal
            reserved.update(counts)
            self._reserved.update(counts)

        try:
            yield admit
        finally:
            self._reserved -= reserved
        for (model, _), count in reserved.items():
            self._add(model, Lane.BULK, tenant, count)

    def _add(self, model: str, lane: Lane, tenant: str, jobs: int) -> None:
        self._depths.setdefault((model, lane), QueueDepth()).add(tenant, jobs)

    def _refusal(self, model: str, lane: Lane, tenant: str, jobs: int) -> QueueSaturated | None:
        entry = self._models[model]
        depth = self._depths.get((model, lane), QueueDepth())
        limit = _limit(entry, lane)
        share = max(1, int(limit * entry.max_tenant_share))
        reserved = {who: count for (of, who), count in self._reserved.items() if of == model and lane is Lane.BULK}
        whole = (depth.jobs + sum(reserved.values()), limit, "")
        own = (depth.by_tenant.get(tenant, 0) + reserved.get(tenant, 0), share, f" of tenant {tenant}")
        for queued, most, whose in (whole, own):
            if queued + jobs > most:
                return _refused(queue_name(model, lane), queued, most, whose, jobs, depth.jobs_per_second)
        return None


def _limit(entry: ModelEntry, lane: Lane) -> int:
    return entry.max_queued_bulk if lane is Lane.BULK else entry.max_queued_interactive


def _refused(queue: str, queued: int, limit: int, whose: str, jobs: int, rate: float) -> QueueSaturated:
    facts = {"queue": queue, "depth": queued, "limit": limit}
    if jobs > limit:
        return QueueSaturated(
            f"queue {queue} accepts {limit:,} jobs{whose} and {jobs:,} were submitted at once; split them, or raise its "
            "limit in models.toml",
            **facts,
        )
    seconds = (queued + jobs - limit) / rate if rate else _LATEST_SECONDS
    seconds = min(max(seconds, _SOONEST_SECONDS), _LATEST_SECONDS)
    return QueueSaturated(
        f"queue {queue} has {queued:,} jobs{whose} and accepts {limit:,}; submit again in {seconds:.0f} s",
        retry_after_seconds=round(seconds, 1),
        **facts,
    )
