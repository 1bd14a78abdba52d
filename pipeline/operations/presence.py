"""Say every few seconds that this process lives: health, queues and operators read it."""

import asyncio
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version

import structlog

from pipeline.models import Models
from pipeline.store import Database, processes
from pipeline.store.processes import REPORT_SECONDS, Heartbeat, Role
from schemas.errors import StoreError

_log = structlog.get_logger(__name__)
_PACKAGE = "yyc3-ai-call"


def process_name(role: str) -> str:
    """Return a name for this process: what it does, its process id, its host."""
    return f"{role}.{os.getpid()}@{socket.gethostname()}"


def models_hash(models: Models) -> str:
    """Return a name for all entries together, but for their addresses and the way there, which may differ between hosts."""
    entries = sorted(entry.model_dump_json(exclude={"endpoints", "port", "proxy"}) for entry in models)
    return sha256("\n".join(entries).encode()).hexdigest()[:16]


class Presence:
    """The heartbeat of this process.

    Args:
        database: where it is stored.
        role: what this process does.
        name: of this process.
        models: as this process knows them.
        lease: as it is set here.
        holds: returns what it works on, as a number.
    """

    def __init__(
        self,
        database: Database,
        role: Role,
        name: str,
        models: Models,
        lease: timedelta,
        holds: Callable[[], int] = lambda: 0,
    ) -> None:
        self._database = database
        self._name, self._role, self._models, self._lease = name, role, models, lease
        self._holds = holds

    async def report_forever(self) -> None:
        """Report until cancelled; then say that it stops."""
        try:
            while True:
                try:
                    await processes.report(self._database, self._heartbeat())
                except StoreError as error:
                    _log.warning("this process is not heard of for now", reason=error.message)
                await asyncio.sleep(REPORT_SECONDS)
        except asyncio.CancelledError:
            await self._stop()
            raise

    def _heartbeat(self) -> Heartbeat:
        known, lease = models_hash(self._models), self._lease.total_seconds()
        return Heartbeat(self._name, self._role, _version(), known, lease, self._holds())

    async def _stop(self) -> None:
        try:
            async with asyncio.timeout(1):
                await processes.stopped(self._database, self._name)
        except (StoreError, TimeoutError):
            _log.info("it is not known that this process stops: the database does not answer")


def _version() -> str:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return "unknown"
