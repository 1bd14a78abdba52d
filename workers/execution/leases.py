"""The runs that this process holds: their leases are renewed, and a lost run stops at once."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import structlog

from pipeline.concurrency.backoff import retry_while_unavailable
from pipeline.policies.leases import renewal_interval
from pipeline.store import Database, claims, leases
from schemas.errors import StoreUnavailable
from schemas.ids import JobId
from workers.execution.run import Run

_log = structlog.get_logger(__name__)
_BATCH_SECONDS = 1.0


class Leases:
    """Held runs by id, renewed together in one statement."""

    def __init__(self, database: Database, lease: timedelta) -> None:
        self._database = database
        self._lease = lease
        self._held: dict[UUID, tuple[Run, asyncio.Task[None]]] = {}

    def add(self, run: Run, work: "asyncio.Task[None]") -> None:
        """Renew the lease of a run until it is released; `work` is cancelled if it is lost."""
        self._held[run.claim.run_id] = (run, work)

    def release(self, run: Run) -> None:
        """Stop renewing the lease of a run."""
        self._held.pop(run.claim.run_id, None)

    async def renew_forever(self) -> None:
        """Renew once every renewal interval, until cancelled."""
        while True:
            await asyncio.sleep(renewal_interval(self._lease).total_seconds())
            if self._held:
                await self._renew()

    async def _renew(self) -> None:
        run_ids = list(self._held)
        try:
            renewed = await leases.renew(self._database, run_ids, self._lease)
        except StoreUnavailable as error:
            # Nothing can be settled now either; settling finds out whether the lease outlived the outage.
            _log.warning("leases were not renewed", reason=error.message, held=len(run_ids))
            return
        lost: list[Run] = []
        for run_id in run_ids:
            run, work = self._held.get(run_id, (None, None))
            if run is None or work is None or run.ended.is_set():
                continue
            if run_id not in renewed:
                del self._held[run_id]
                run.lost = True
                lost.append(run)
                work.cancel()
                _log.warning(
                    "run was lost: its chunk was requeued", chunk=run.claim.first_job_id, model=run.claim.model
                )
            elif renewed[run_id] > run.cancelled:
                await self._find_cancelled(run, renewed[run_id])
        if lost:
            await self._take_crashes_back(lost)

    async def follow_batches(self) -> None:
        """Give back the runs of batches that are paused, and stop those of cancelled ones, within a second; until cancelled."""
        while True:
            await asyncio.sleep(_BATCH_SECONDS)
            held = {run.claim.first_job_id: run for run, _ in self._held.values() if run.claim.batch_id is not None}
            if not held:
                continue
            try:
                found = await leases.held_chunks(self._database, list(held))
            except StoreUnavailable as error:
                _log.warning("whether batches are paused is not known", reason=error.message)
                continue
            for chunk in found:
                if chunk.cancelled:
                    self._stop_cancelled(held[chunk.first_job_id])
                else:
                    held[chunk.first_job_id].give_back()

    def _stop_cancelled(self, run: Run) -> None:
        _, work = self._held.pop(run.claim.run_id, (None, None))
        if work is not None and not run.ended.is_set():
            run.lost = True
            work.cancel()
            _log.info("the batch of a chunk was cancelled", chunk=run.claim.first_job_id, batch=run.claim.batch_id)

    async def _take_crashes_back(self, lost: Sequence[Run]) -> None:
        """Say that this worker lives: it was suspended, or the database did not answer. Jobs are not to blame for that."""
        chunks = [(run.claim.first_job_id, run.claim.fence) for run in lost]
        await retry_while_unavailable(
            lambda: leases.take_crashes_back(self._database, chunks), "crashes are taken back later", growing=False
        )

    async def _find_cancelled(self, run: Run, cancelled: int) -> None:
        """Look up cancelled jobs of a run whose notification was lost."""
        try:
            run.cancel(await claims.cancelled(self._database, list(run.unsettled)))
        except StoreUnavailable as error:
            _log.warning("cancelled jobs were not looked up", reason=error.message)
            return
        run.cancelled = cancelled  # those of an earlier run are counted on the chunk too

    def cancel(self, job_ids: Sequence[JobId]) -> None:
        """Drop jobs that were cancelled from the runs that have them."""
        for run, _ in list(self._held.values()):
            run.cancel(job_ids)
