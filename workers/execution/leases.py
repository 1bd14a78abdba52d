"""What this process holds, kept alive on the database clock. A run that is no longer ours stops at once."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import structlog

from pipeline.policies.leases import beat
from pipeline.store import Database, claims
from schemas.errors import StoreUnavailable
from schemas.ids import JobId
from workers.execution.run import Run

_log = structlog.get_logger(__name__)


class Leases:
    """Held runs by id, renewed once a beat in one statement."""

    def __init__(self, database: Database, lease: timedelta) -> None:
        self._database = database
        self._lease = lease
        self._held: dict[UUID, tuple[Run, asyncio.Task[None]]] = {}

    def hold(self, run: Run, work: "asyncio.Task[None]") -> None:
        """Renew this run until it is released; `work` is cancelled when it is lost."""
        self._held[run.claim.run_id] = (run, work)

    def release(self, run: Run) -> None:
        """Renew it no more."""
        self._held.pop(run.claim.run_id, None)

    async def keep(self) -> None:
        """Renew for as long as the process lives."""
        while True:
            await asyncio.sleep(beat(self._lease).total_seconds())
            if self._held:
                await self._renew()

    async def _renew(self) -> None:
        asked = list(self._held)
        try:
            still = await claims.renew(self._database, asked, self._lease)
        except StoreUnavailable as error:
            # Nothing can be settled now either; settling finds out whether the lease outlived the outage.
            _log.warning("leases were not renewed", reason=error.message, held=len(asked))
            return
        for run_id in asked:
            run, work = self._held.get(run_id, (None, None))
            if run is None or work is None or run.ended.is_set():
                continue
            if run_id not in still:
                del self._held[run_id]
                run.lost = True
                work.cancel()
                _log.warning("run is no longer ours", chunk=run.claim.first_job_id, model=run.claim.model)
            elif still[run_id] > run.cancelled:
                await self._find_cancelled(run, still[run_id])

    async def _find_cancelled(self, run: Run, cancelled: int) -> None:
        """Somebody cancelled jobs of a run, and word of it did not come."""
        try:
            run.cancel(await claims.cancelled(self._database, list(run.left)))
        except StoreUnavailable as error:
            _log.warning("cancelled jobs were not looked up", reason=error.message)
            return
        run.cancelled = cancelled  # those of a former run are counted on the chunk too

    def cancel(self, job_ids: Sequence[JobId]) -> None:
        """Word has come that these jobs were cancelled."""
        for run, _ in list(self._held.values()):
            run.cancel(job_ids)


__all__ = ["Leases"]
