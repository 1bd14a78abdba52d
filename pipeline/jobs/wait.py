"""Waiting for outcomes: a whisper says when, the store says what. A lost whisper costs at most the next look."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from pipeline.broker import Whispers
from pipeline.concurrency.cancellation import ended
from pipeline.policies import retries
from pipeline.policies.chunking import Coalescer
from pipeline.store import Database, queries
from schemas.errors import BrokerUnavailable, JobNotFound, StoreUnavailable
from schemas.ids import JobId
from schemas.results import Outcome

_log = structlog.get_logger(__name__)
_LOOK_SECONDS = 0.5
_LONGEST_LOOK_SECONDS = 5.0
_REMEMBERED_JOBS = 100_000
T = TypeVar("T")


async def patiently(look: Callable[[], Awaitable[T]]) -> T:
    """Look at the store until it answers: somebody who waits for hours anyway waits out a restart of the database too."""
    attempt = 0
    while True:
        try:
            return await look()
        except StoreUnavailable as error:
            attempt += 1
            _log.warning("waiting for the database", reason=error.message)
            await asyncio.sleep(retries.delay(attempt).total_seconds())


class Waiter:
    """Outcomes for this process, fetched together however many callers wait.

    Args:
        channel: where workers whisper the ids of this producer's settled jobs.
    """

    def __init__(self, database: Database, whispers: Whispers, channel: str) -> None:
        self._database = database
        self._whispers = whispers
        self._channel = channel
        self._fetch: Coalescer[JobId, Outcome] = Coalescer(self._fetch_many)
        self._waiting: dict[JobId, list[asyncio.Event]] = {}
        self._mine: OrderedDict[JobId, bool] = OrderedDict()  # submitted here: whether a whisper came already
        self._listener: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to listen; returns when no whisper from now on is missed, or at once where there is no broker."""
        ready = asyncio.Event()
        self._listener = asyncio.create_task(self._listen(ready))
        await ready.wait()

    async def stop(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            await ended(self._listener)

    def expect(self, job_id: JobId) -> None:
        """A job was submitted here: its whisper will come, so nobody needs to look before."""
        self._mine.setdefault(job_id, False)
        if len(self._mine) > _REMEMBERED_JOBS:
            self._mine.popitem(last=False)

    async def outcome(self, job_id: JobId) -> Outcome:
        """Wait until a job is settled.

        Raises:
            JobNotFound: there is no such job.
        """
        said = self._mine.pop(job_id, True)
        event, began = asyncio.Event(), time.monotonic()
        self._waiting.setdefault(job_id, []).append(event)
        try:
            while True:
                if said:
                    outcome = await self._fetch(job_id)
                    if outcome.settled:
                        return outcome
                try:
                    # Whoever has waited long can wait a little longer: a thousand of them would ask all the time.
                    waited = time.monotonic() - began
                    async with asyncio.timeout(min(max(_LOOK_SECONDS, waited / 4), _LONGEST_LOOK_SECONDS)):
                        await event.wait()
                except TimeoutError:
                    pass  # look anyway: the whisper may be lost
                event.clear()
                said = True
        finally:
            events = self._waiting[job_id]
            events.remove(event)
            if not events:
                del self._waiting[job_id]

    async def _fetch_many(self, job_ids: list[JobId]) -> list[Outcome | BaseException]:
        found = await patiently(lambda: queries.outcomes_of(self._database, sorted(set(job_ids))))
        return [found.get(job_id) or JobNotFound(f"there is no job {job_id}", job_id=job_id) for job_id in job_ids]

    async def _listen(self, ready: asyncio.Event) -> None:
        attempt = 0
        while True:
            try:
                async for job_ids in self._whispers.listen(self._channel, ready):
                    attempt = 0
                    for job_id in job_ids:
                        if job_id in self._mine:
                            self._mine[job_id] = True
                        for event in self._waiting.get(job_id, ()):
                            event.set()
            except BrokerUnavailable as error:
                _log.warning("no whispers for now, looking twice a second instead", reason=error.message)
            ready.set()
            attempt += 1
            await asyncio.sleep(retries.delay(attempt).total_seconds())


__all__ = ["Waiter", "patiently"]
