"""Claim a chunk for a doorbell; doorbells of a model that arrive together share a statement."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TypeVar
from uuid import UUID, uuid4

from pipeline.concurrency.backoff import Stopped, retry_while_unavailable
from pipeline.concurrency.byte_budget import ByteBudget
from pipeline.concurrency.coalescer import Coalescer
from pipeline.store import Database, claims
from pipeline.store.claims import Claim, Room
from schemas.doorbells import Doorbell, Lane
from schemas.ids import JobId

_LARGEST_CLAIM = 64
_WAIT_FOR_ROOM_SECONDS = 30.0
T = TypeVar("T")
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
        self._waiting_for_room: set[tuple[str, Lane]] = set()
        self._best: dict[tuple[str, Lane], Coalescer[UUID, Claim | None]] = {}

    async def claim(self, doorbell: Doorbell) -> Claim | None:
        """Claim a chunk; None if another worker has it, no chunk is queued, or the worker drains.

        A chunk that does not fit into the memory of this process is waited for by one doorbell of its lane, and not for
        long. The others find nothing: recovery publishes them again.
        """
        run_id = uuid4()  # made before it is sent: a claim whose reply was lost is repeated and finds its chunk
        try:
            claim = await self._patiently(lambda: self._claim(doorbell, run_id))
            if claim is not None or self._budget.unused or self._stop.is_set():
                return claim
            return await self._claim_with_room(doorbell, run_id)
        except Stopped:
            return None

    def release(self, claim: Claim) -> None:
        """Forget the rows of a claim: its run has ended."""
        self._budget.give_back(claim.bytes)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        return await retry_while_unavailable(call, "claim waits for the database", self._stop, growing=False)

    async def _claim_with_room(self, doorbell: Doorbell, run_id: UUID) -> Claim | None:
        """Wait until what was left out fits, and claim it, or what is best then."""
        model, lane = key = doorbell.model, doorbell.lane
        if key in self._waiting_for_room:
            return None
        self._waiting_for_room.add(key)
        try:
            size = await self._patiently(lambda: claims.waiting_bytes(self._database, model, lane, doorbell.chunk))
            if size is None or size <= claims.SMALL_BYTES:
                return None
            try:
                async with asyncio.timeout(_WAIT_FOR_ROOM_SECONDS):
                    await self._budget.acquire(size)
            except TimeoutError:
                return None
        finally:
            self._waiting_for_room.discard(key)
        found: Mapping[UUID, Claim] = {}
        try:
            if not self._stop.is_set():
                found = await self._patiently(lambda: self._claim_best_within(key, [run_id], Room(size, alone=True)))
        finally:
            self._budget.give_back(size - _bytes_of(found))
        return found.get(run_id)

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
        found = await self._within_room(
            lambda room: claims.claim_named(self._database, wanted, worker=self._worker, lease=self._lease, room=room)
        )
        return [found.get(run_id) for _, run_id in wanted]

    async def _claim_best(self, model: str, lane: Lane, run_ids: list[UUID]) -> Sequence[Claim | None]:
        found = await self._within_room(lambda room: self._claim_best_within((model, lane), run_ids, room))
        return [found.get(run_id) for run_id in run_ids]

    async def _claim_best_within(
        self, key: tuple[str, Lane], run_ids: Sequence[UUID], room: Room
    ) -> Mapping[UUID, Claim]:
        return await claims.claim_best(self._database, *key, run_ids, worker=self._worker, lease=self._lease, room=room)

    async def _within_room(self, claim: Callable[[Room], Awaitable[Mapping[UUID, Claim]]]) -> Mapping[UUID, Claim]:
        """Claim with all that is free, which no other claim of this process has meanwhile."""
        room = Room(self._budget.free, alone=self._budget.unused)
        self._budget.take(room.bytes)
        found: Mapping[UUID, Claim] = {}
        try:
            found = await claim(room)
        finally:
            self._budget.give_back(room.bytes - _bytes_of(found))
        return found


def _bytes_of(found: Mapping[UUID, Claim]) -> int:
    return sum(claim.bytes for claim in found.values())
