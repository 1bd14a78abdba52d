"""Dead letters are decided about: run again at a bearable rate, or put away. Stopping half-way leaves the rest as it was."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from pipeline.store import Database, dead_letters
from pipeline.store.dead_letters import Decision, Letters
from schemas.ids import JobId

JOBS_PER_SECOND = 1_000.0
"""How fast dead letters are replayed unless somebody says otherwise: new work goes on beside it."""

_SLICE_JOBS = 500


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: letters decided about, and letters left alone since their chunk is not done yet."""

    decided: int
    busy: int


async def decide(
    database: Database, letters: Letters, decision: Decision, *, per_second: float = JOBS_PER_SECOND
) -> AsyncIterator[Progress]:
    """Decide about all that are meant, a slice a transaction; says after each how far it is.

    Each letter is decided about once, however often and by however many this is called. Recovery rings for what was
    replayed. Cancelled, it leaves what it had not come to.

    Raises:
        StoreUnavailable: what was said is done; call again for the rest.
    """
    began, decided, busy = time.monotonic(), 0, 0
    after: JobId | None = None
    limit = max(1, min(_SLICE_JOBS, int(per_second)))
    while True:
        done = await dead_letters.decide(database, letters, decision, after=after, limit=limit)
        decided, busy, after = decided + done.decided, busy + done.busy, done.last
        yield Progress(decided, busy)
        if after is None:
            return
        await asyncio.sleep(max(0.0, began + decided / per_second - time.monotonic()))


__all__ = ["JOBS_PER_SECOND", "Progress", "decide"]
