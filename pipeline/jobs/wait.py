"""Wait for outcomes: a notification triggers a look at the stored outcome."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator

from pipeline.broker import Notifier
from pipeline.concurrency.backoff import keep_subscribed, retry_while_unavailable
from pipeline.concurrency.cancellation import cancel_and_wait
from pipeline.concurrency.coalescer import Coalescer
from pipeline.store import Database, queries
from schemas.errors import JobNotFound
from schemas.ids import JobId
from schemas.results import Outcome

_LOOK_SECONDS = 0.5
_LONGEST_LOOK_SECONDS = 5.0
_TRACKED_JOBS = 100_000


class Waiter:
    """Waits for outcomes in this process; however many callers wait, outcomes are fetched together.

    A lost notification delays a caller until its next look, half a second at first.

    Args:
        database: where outcomes are.
        notifier: receives notifications.
        channel: of this producer's settled jobs.
    """

    def __init__(self, database: Database, notifier: Notifier, channel: str) -> None:
        self._database = database
        self._notifier = notifier
        self._channel = channel
        self._fetch: Coalescer[JobId, Outcome] = Coalescer(self._fetch_many)
        self._waiting: dict[JobId, list[asyncio.Event]] = {}
        self._tracked: OrderedDict[JobId, bool] = OrderedDict()  # submitted here: whether it was notified of
        self._ready = asyncio.Event()
        self._subscription: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe; returns when no later notification is missed, or at once where there is no broker."""
        warning = "notifications unavailable, polling twice a second"
        self._subscription = asyncio.create_task(keep_subscribed(self._subscribe, self._wake, warning))
        await self._ready.wait()

    async def stop(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            await cancel_and_wait(self._subscription)

    def track(self, job_id: JobId) -> None:
        """Expect the notification of a job that was submitted here: no look is needed before it."""
        self._tracked.setdefault(job_id, False)
        if len(self._tracked) > _TRACKED_JOBS:
            self._tracked.popitem(last=False)

    async def outcome(self, job_id: JobId) -> Outcome:
        """Wait until a job is settled.

        Raises:
            JobNotFound: there is no such job.
        """
        look = self._tracked.pop(job_id, True)
        event, started = asyncio.Event(), time.monotonic()
        self._waiting.setdefault(job_id, []).append(event)
        try:
            while True:
                if look:
                    outcome = await self._fetch(job_id)
                    if outcome.settled:
                        return outcome
                try:
                    # A caller that has waited long looks less often: a thousand of them would load the database.
                    waited = time.monotonic() - started
                    async with asyncio.timeout(min(max(_LOOK_SECONDS, waited / 4), _LONGEST_LOOK_SECONDS)):
                        await event.wait()
                except TimeoutError:
                    pass  # look anyway: the notification may be lost
                event.clear()
                look = True
        finally:
            events = self._waiting[job_id]
            events.remove(event)
            if not events:
                del self._waiting[job_id]

    async def _fetch_many(self, job_ids: list[JobId]) -> list[Outcome | BaseException]:
        found = await retry_while_unavailable(
            lambda: queries.outcomes_of(self._database, sorted(set(job_ids))), "waiting for the database"
        )
        return [found.get(job_id) or JobNotFound(f"there is no job {job_id}", job_id=job_id) for job_id in job_ids]

    async def _subscribe(self) -> AsyncIterator[list[JobId]]:
        try:
            async for job_ids in self._notifier.subscribe(self._channel, self._ready):
                yield job_ids
        finally:
            self._ready.set()

    async def _wake(self, job_ids: list[JobId]) -> None:
        for job_id in job_ids:
            if job_id in self._tracked:
                self._tracked[job_id] = True
            for event in self._waiting.get(job_id, ()):
                event.set()
