"""Claim a chunk for a doorbell; doorbells of a model that arrive together share a statement."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from uuid import UUID, uuid4

from pipeline.concurrency.backoff import Stopped, retry_while_unavailable
from pipeline.concurrency.byte_budget import ByteBudget
from pipeline.concurrency.coalescer import Coalescer
from pipeline.store import Database, claims
from pipeline.store.claims import Claim, Room
from schemas.doorbells import Doorbell, Lane
from schemas.ids import JobId

_LARGEST_CLAIM = 64
_TRIES_WITHOUT_ROOM, _WAIT_FOR_ROOM_SECONDS = 10, 1.0
_CLAIMED_BYTES = 48 * 1024 * 1024  # a request is copied about five times on its way to an engine


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
        self._budget = ByteBudget(_CLAIMED_BYTES)
        self._worker = worker
        self._lease = lease
        self._stop = stop
        self._named: Coalescer[tuple[JobId, UUID], Claim | None] = Coalescer(self._claim_named)
        self._best: dict[tuple[str, Lane], Coalescer[UUID, Claim | None]] = {}

    async def claim(self, doorbell: Doorbell) -> Claim | None:
        """Claim a chunk; None if another worker has it, no chunk is queued, or the worker drains.

        A chunk that does not fit into the memory of this process is waited for some seconds; another worker may take it
        meanwhile, and recovery publishes its doorbell again.
        """
        run_id = uuid4()  # made before it is sent: a claim whose reply was lost is repeated and finds its chunk
        try:
            for _ in range(_TRIES_WITHOUT_ROOM):
                claim = await retry_while_unavailable(
                    lambda: self._claim(doorbell, run_id), "claim waits for the database", self._stop, growing=False
                )
                if claim is not None or not self._budget.short or self._stop.is_set():
                    return claim
                await self._budget.wait_for_more(_WAIT_FOR_ROOM_SECONDS)
        except Stopped:
            pass
        return None

    def release(self, claim: Claim) -> None:
        """Forget the rows of a claim: its run has ended."""
        self._budget.give_back(claim.bytes)

    async def _claim(self, doorbell: Doorbell, run_id: UUID) -> Claim | None:
        """Claim the chunk that a doorbell names, which costs little, or else the best one of its lane.

        A doorbell says that there is work; which is next is known at the moment of the claim.
        """
        if doorbell.chunk is not None:
            claim = await self._named((doorbell.chunk, run_id))
            if claim is not None:
                return claim
        key = (doorbell.model, doorbell.lane)
        if key not in self._best:
            self._best[key] = Coalescer(partial(self._claim_best, *key), largest=_LARGEST_CLAIM)
        return await self._best[key](run_id)

    async def _claim_named(self, wanted: list[tuple[JobId, UUID]]) -> Sequence[Claim | None]:
        found = await claims.claim_named(
            self._database, wanted, worker=self._worker, lease=self._lease, room=self._room()
        )
        return self._taken(found, [run_id for _, run_id in wanted])

    async def _claim_best(self, model: str, lane: Lane, run_ids: list[UUID]) -> Sequence[Claim | None]:
        found = await claims.claim_best(
            self._database, model, lane, run_ids, worker=self._worker, lease=self._lease, room=self._room()
        )
        return self._taken(found, run_ids)

    def _room(self) -> Room:
        return Room(self._budget.free, alone=self._budget.unused)

    def _taken(self, found: Mapping[UUID, Claim], run_ids: Sequence[UUID]) -> Sequence[Claim | None]:
        self._budget.take(sum(claim.bytes for claim in found.values()))
        return [found.get(run_id) for run_id in run_ids]
