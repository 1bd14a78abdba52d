"""Claim a chunk, run it, settle it: what happens between a doorbell and an outcome. One asyncio loop a process."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import structlog

from pipeline.broker import Notifier, Publisher
from pipeline.engine import EnginePool
from pipeline.store import Database
from pipeline.store.settlement import SettledRow
from pipeline.streams import StreamWriter
from schemas.doorbells import Doorbell, Lane
from schemas.errors import BrokerUnavailable, EngineError
from workers.execution.claiming import Claimer
from workers.execution.leases import Leases
from workers.execution.notifications import WorkerNotifications
from workers.execution.outcome_writer import OutcomeWriter
from workers.execution.preparation import RowPreparer
from workers.execution.run import Run
from workers.execution.sampling import sample_forever
from workers.execution.scheduler import Scheduler

_log = structlog.get_logger(__name__)
_HAND_BACK_SECONDS = 5.0


class Consumption(Protocol):
    """Whether doorbells of a model should arrive at this process."""

    def set(self, model: str, *, active: bool) -> None:
        """Consume the doorbells of a model, or leave them to other workers."""
        ...

    def reapply(self, model: str) -> None:
        """Apply the last setting once more: a doorbell arrived all the same."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The name of a worker process, and its limits in time.

    Attributes:
        name: the Celery node name, shown with chunks.
        lease: how long it may be silent before its chunks are requeued.
        drain: how long requests in flight may take after a stop.
    """

    name: str
    lane: Lane
    lease: timedelta
    drain: timedelta


class Worker:
    """Handles the doorbells of a process.

    Args:
        settings: see WorkerSettings.
        database: where chunks are.
        publisher: publishes open doorbells again.
        notifier: notifies callers.
        streams: writes streamed answers.
        pools: engine pools by model.
        consumption: controls whether doorbells arrive.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        database: Database,
        publisher: Publisher,
        notifier: Notifier,
        streams: StreamWriter,
        pools: Mapping[str, EnginePool],
        consumption: Consumption,
    ) -> None:
        self._settings = settings
        self._database = database
        self._publisher = publisher
        self._pools = pools
        self._consumption = consumption
        self._stop = asyncio.Event()
        self._schedulers = {name: Scheduler(pool, streams) for name, pool in pools.items()}
        self._leases = Leases(database, settings.lease)
        self._notifications = WorkerNotifications(notifier, self._leases, pools, settings.lane)
        self._claimer = Claimer(database, settings.name, settings.lease, self._stop)
        self._preparer = RowPreparer(database, pools)
        self._writer = OutcomeWriter(database, notifier, streams, self._stop, self._on_stored)
        self._work: set[asyncio.Task[None]] = set()
        for name, pool in pools.items():
            pool.on_available = partial(self._set_consumption, name)

    async def serve(self) -> None:
        """Renew leases, watch notifications and endpoints, until cancelled."""
        settings = self._settings
        async with asyncio.TaskGroup() as group:
            group.create_task(self._leases.renew_forever())
            group.create_task(self._leases.follow_batches())
            group.create_task(self._notifications.watch())
            group.create_task(
                sample_forever(self._database, self._pools, self._schedulers, settings.name, settings.lane)
            )
            for pool in self._pools.values():
                group.create_task(pool.watch())

    @property
    def held_chunks(self) -> int:
        """Chunks that run here now."""
        return len(self._work)

    async def handle(self, doorbell: Doorbell, started: Callable[[Run], None]) -> dict[str, Any]:
        """Claim what a doorbell is for, run it and settle it.

        Returns a few numbers for Flower; `rows` is 0 if another worker was first, which is normal.
        `started` is called with the run once there is one, so that its progress can be shown.
        """
        if self._stop.is_set():
            return {"rows": 0, "note": "draining"}
        if doorbell.model not in self._pools:
            return {"rows": 0, "note": "model not served here"}
        if self._pools[doorbell.model].all_down:
            self._consumption.reapply(doorbell.model)  # recovery publishes the doorbell again
            return {"rows": 0, "note": "no endpoint answers"}
        claim = await self._claimer.claim(doorbell)
        if claim is None:
            return {"rows": 0, "note": "nothing to claim"}
        self._notifications.announce_interactive(doorbell.model)
        run = Run(claim)
        started(run)
        try:
            await self._run(run)
        finally:
            run.rows.clear()  # they name their run: a cycle would keep their requests until the next garbage collection
            self._claimer.release(claim)
        if doorbell.chunk is None:
            await self._republish(doorbell)
        return {
            "chunk": claim.first_job_id,
            "batch": claim.batch_id,
            "batch_name": claim.batch_name,
            "tenant": claim.tenant,
            "rows": claim.rows,
            "rows_done": run.done_rows,
            "rows_failed": run.failed,
            **self._setback(run),
        }

    def _setback(self, run: Run) -> dict[str, Any]:
        """Return why a run achieved nothing, in words of ours: `retry` if its rows wait, `failed` if all of them failed."""
        settled = len(run.claim.jobs) - len(run.unsettled)
        if run.lost:
            return {"retry": "lost: its lease ended and another worker has the chunk, or its batch was cancelled"}
        if run.unsettled and not settled:
            if run.last_code is None:
                why = "its batch is paused" if run.given_back else "this worker stops"
                return {"retry": f"handed over: {why}"}
            problems = [
                one.problem.message for one in self._pools[run.claim.model].endpoints if one.problem is not None
            ]
            return {"retry": f"{run.last_code}: {problems[0] if problems else run.last_code.meaning}"}
        if settled and run.failed == settled:
            return {"failed": f"all {settled} rows failed: {run.last_code or 'see yyc3 dead-letters list'}"}
        return {}

    async def drain(self) -> None:
        """Send no more rows, let requests in flight end within the limit, requeue the rest."""
        self._stop.set()
        for scheduler in self._schedulers.values():
            scheduler.stop()
        _log.info("draining", runs=len(self._work))
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.drain.total_seconds()
        await asyncio.sleep(0)  # a run that was just created starts, otherwise it could not requeue its chunk
        while self._work:
            # A claim that was in flight when the drain began becomes a run of its own.
            _, late = await asyncio.wait(self._work, timeout=max(0.0, end - loop.time()))
            if late:
                for work in late:
                    work.cancel()
                _, stuck = await asyncio.wait(late, timeout=_HAND_BACK_SECONDS)
                for work in stuck:  # the database is unavailable: what was not stored runs again after the lease
                    _log.error("stopping with results that could not be stored")
                    work.cancel()

    async def _run(self, run: Run) -> None:
        work = asyncio.create_task(self._execute(run))
        self._work.add(work)
        self._leases.add(run, work)
        try:
            await asyncio.wait({work})
            if not work.cancelled():
                work.result()
        finally:
            self._leases.release(run)
            self._work.discard(work)

    async def _execute(self, run: Run) -> None:
        """Run a claim to its end; however it ends, what is known is settled and the rest is requeued."""
        writing = asyncio.create_task(self._writer.write_while_running(run))
        try:
            rows = [] if self._stop.is_set() else await self._preparer.prepare(run)
            while rows and not run.lost and not run.given_back and not self._stop.is_set():
                await self._schedulers[run.claim.model].send(run, rows)
                rows = await self._preparer.rows_to_retry_now(run, rows)
        except EngineError as error:
            run.last_code = error.code
            _log.warning("no endpoint", model=run.claim.model, reason=error.message, rows=len(run.unsettled))
        except asyncio.CancelledError:
            if not run.lost and not self._stop.is_set():
                raise
        finally:
            run.end()
            await writing  # two settlements of one chunk are never in one write
            await self._writer.write_last(run)

    async def _republish(self, doorbell: Doorbell) -> None:
        """Publish an open doorbell again: the chunk that just ended leaves capacity for another."""
        try:
            await self._publisher.publish([doorbell])
        except BrokerUnavailable as error:
            _log.warning("doorbell not published again, recovery will do it", reason=error.message)

    def _set_consumption(self, model: str, available: bool) -> None:
        self._consumption.set(model, active=available)

    def _on_stored(self, model: str, rows: Sequence[SettledRow]) -> None:
        self._schedulers[model].stored(row.cache_key for row in rows)
