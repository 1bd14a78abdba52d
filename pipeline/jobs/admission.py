"""Back-pressure: what would make a queue too long is refused, with its depth and when to come again."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pipeline.models import ModelEntry, Models
from pipeline.store import Database, queue_depths
from pipeline.store.queue_depths import Depth
from pipeline.store.submission import NewJob
from schemas.doorbells import Lane, queue_name
from schemas.errors import QueueSaturated

_LOOK_SECONDS = 1.0
_SOONEST_SECONDS, _LATEST_SECONDS = 1.0, 600.0


class QueueLimits:
    """The limits of models.toml, as one producer keeps them.

    It looks at the queues once a second and counts what it adds itself, so several producers together may overshoot by what
    they submit in a second. Jobs that run no longer count.
    """

    def __init__(self, models: Models, database: Database) -> None:
        self._models = models
        self._database = database
        self._depths: dict[tuple[str, Lane], Depth] = {}
        self._looked_at: float | None = None
        self._looking = asyncio.Lock()
        self._coming: Counter[tuple[str, str]] = Counter()

    async def look(self) -> None:
        """Look at the queues, unless that was done a moment ago. To be called before the others.

        Raises:
            StoreUnavailable: nothing is known of them.
        """
        async with self._looking:
            now = time.monotonic()
            if self._looked_at is None or now - self._looked_at >= _LOOK_SECONDS:
                self._depths = await queue_depths.queued(self._database)
                self._looked_at = now

    def admit_one(self, job: NewJob) -> QueueSaturated | None:
        """Count one more interactive job, or say why not."""
        refusal = self._refusal(job.model, Lane.INTERACTIVE, job.tenant, 1)
        if refusal is None:
            self._add(job.model, Lane.INTERACTIVE, job.tenant, 1)
        return refusal

    @contextmanager
    def batch(self, jobs: Sequence[NewJob], tenant: str) -> Iterator[Callable[[], None]]:
        """A batch of bulk jobs on its way in; what is yielded counts it, all or none, or raises QueueSaturated.

        Until it is committed no look at the queues finds it: it is counted apart for so long.
        """
        counts = Counter((job.model, tenant) for job in jobs)
        coming = Counter[tuple[str, str]]()

        def admit() -> None:
            for (model, _), count in counts.items():
                refusal = self._refusal(model, Lane.BULK, tenant, count)
                if refusal is not None:
                    raise refusal
            coming.update(counts)
            self._coming.update(counts)

        try:
            yield admit
        finally:
            self._coming -= coming
        for (model, _), count in coming.items():
            self._add(model, Lane.BULK, tenant, count)

    def _add(self, model: str, lane: Lane, tenant: str, jobs: int) -> None:
        self._depths.setdefault((model, lane), Depth()).add(tenant, jobs)

    def _refusal(self, model: str, lane: Lane, tenant: str, jobs: int) -> QueueSaturated | None:
        entry = self._models[model]
        depth = self._depths.get((model, lane), Depth())
        limit = _limit(entry, lane)
        share = max(1, int(limit * entry.tenant_share))
        coming = {who: count for (of, who), count in self._coming.items() if of == model and lane is Lane.BULK}
        whole = (depth.jobs + sum(coming.values()), limit, "")
        own = (depth.by_tenant.get(tenant, 0) + coming.get(tenant, 0), share, f" of tenant {tenant}")
        for queued, most, whose in (whole, own):
            if queued + jobs > most:
                return _refused(queue_name(model, lane), queued, most, whose, jobs, depth.jobs_per_second)
        return None


def _limit(entry: ModelEntry, lane: Lane) -> int:
    return entry.queued_bulk if lane is Lane.BULK else entry.queued_interactive


def _refused(queue: str, queued: int, limit: int, whose: str, jobs: int, rate: float) -> QueueSaturated:
    facts = {"queue": queue, "depth": queued, "limit": limit}
    if jobs > limit:
        return QueueSaturated(
            f"queue {queue} takes {limit:,} jobs{whose} and {jobs:,} came at once; split them, or raise its limit in "
            "models.toml",
            **facts,
        )
    seconds = (queued + jobs - limit) / rate if rate else _LATEST_SECONDS
    seconds = min(max(seconds, _SOONEST_SECONDS), _LATEST_SECONDS)
    return QueueSaturated(
        f"queue {queue} holds {queued:,} jobs{whose} and takes {limit:,}; submit again in {seconds:.0f} s",
        retry_after_seconds=round(seconds, 1),
        **facts,
    )


__all__ = ["QueueLimits"]
