"""Notifications of a worker process: cancelled jobs, and interactive demand of models in both directions."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

import structlog

from pipeline.broker import CANCELLED, Notifier
from pipeline.concurrency.backoff import keep_subscribed
from pipeline.engine import EnginePool
from schemas.doorbells import Lane
from schemas.errors import BrokerUnavailable
from schemas.ids import JobId
from workers.execution.leases import Leases

_log = structlog.get_logger(__name__)
_DEMAND_SECONDS = 30.0
_ANNOUNCE_SECONDS = 1.0


class WorkerNotifications:
    """Watches notifications, and announces interactive demand.

    Args:
        notifier: sends and receives them.
        leases: runs that may have cancelled jobs.
        pools: engine pools by model; bulk reserves slots in them under interactive demand.
        lane: of this worker.
    """

    def __init__(self, notifier: Notifier, leases: Leases, pools: Mapping[str, EnginePool], lane: Lane) -> None:
        self._notifier = notifier
        self._leases = leases
        self._pools = pools
        self._lane = lane
        self._release: dict[str, asyncio.TimerHandle] = {}
        self._announced: dict[str, float] = {}
        self._announcing: set[asyncio.Task[None]] = set()

    async def watch(self) -> None:
        """Handle notifications until cancelled."""
        async with asyncio.TaskGroup() as group:
            warning = "cancelled jobs are noticed later for now"
            group.create_task(keep_subscribed(self._subscribe_cancelled, self._cancel, warning))
            if self._lane is Lane.BULK:
                warning = "interactive demand is not noticed for now"
                group.create_task(keep_subscribed(self._notifier.subscribe_interactive, self._reserve, warning))

    def announce_interactive(self, model: str) -> None:
        """Announce that a model serves an interactive job, at most once a second, without waiting for it."""
        if self._lane is not Lane.INTERACTIVE:
            return
        now = time.monotonic()
        if now - self._announced.get(model, -_ANNOUNCE_SECONDS) >= _ANNOUNCE_SECONDS:
            self._announced[model] = now
            task = asyncio.create_task(self._announce(model))
            self._announcing.add(task)
            task.add_done_callback(self._announcing.discard)

    async def _announce(self, model: str) -> None:
        try:
            await self._notifier.announce_interactive(model)
        except BrokerUnavailable as error:
            _log.warning("interactive demand was not announced to bulk", model=model, reason=error.message)

    def _subscribe_cancelled(self) -> AsyncIterator[list[JobId]]:
        return self._notifier.subscribe(CANCELLED, asyncio.Event())

    async def _cancel(self, job_ids: list[JobId]) -> None:
        self._leases.cancel(job_ids)

    async def _reserve(self, model: str) -> None:
        """Reserve slots from the first announcement of a model until 30 s after the last."""
        pool = self._pools.get(model)
        if pool is None:
            return
        pool.set_interactive(True)
        if model in self._release:
            self._release[model].cancel()
        loop = asyncio.get_running_loop()
        self._release[model] = loop.call_later(_DEMAND_SECONDS, pool.set_interactive, False)
