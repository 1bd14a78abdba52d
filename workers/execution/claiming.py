"""Claim the chunk that a doorbell is for; claims of named chunks share statements."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID, uuid4

from pipeline.concurrency.backoff import Stopped, retry_while_unavailable
from pipeline.concurrency.coalescer import Coalescer
from pipeline.store import Database, claims
from pipeline.store.claims import Claim
from schemas.doorbells import Doorbell
from schemas.ids import JobId


class Claimer:
    """Claims chunks for one worker process.

    Args:
        database: where chunks are.
        worker: the name shown with the chunk.
        lease: of each claim.
        stop: set when the worker drains.
    """

    def __init__(self, database: Database, worker: str, lease: timedelta, stop: asyncio.Event) -> None:
        self._database = database
        self._worker = worker
        self._lease = lease
        self._stop = stop
        self._claim_named: Coalescer[tuple[JobId, UUID], Claim | None] = Coalescer(self._claim_many)

    async def claim(self, doorbell: Doorbell) -> Claim | None:
        """Claim a chunk; None if another worker has it, no chunk is queued, or the worker drains."""
        run_id = uuid4()  # made before it is sent: a claim whose reply was lost is repeated and finds its chunk
        try:
            return await retry_while_unavailable(
                lambda: self._claim(doorbell, run_id), "claim waits for the database", self._stop, growing=False
            )
        except Stopped:
            return None

    async def _claim(self, doorbell: Doorbell, run_id: UUID) -> Claim | None:
        if doorbell.chunk is not None:
            return await self._claim_named((doorbell.chunk, run_id))
        return await claims.claim_best(
            self._database, doorbell.model, doorbell.lane, run_id, worker=self._worker, lease=self._lease
        )

    async def _claim_many(self, wanted: list[tuple[JobId, UUID]]) -> Sequence[Claim | None]:
        found = await claims.claim_named(self._database, wanted, worker=self._worker, lease=self._lease)
        return [found.get(run_id) for _, run_id in wanted]
