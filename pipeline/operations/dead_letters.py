"""Replay dead letters at a bounded rate, or discard them. Interrupting it leaves the remaining ones untouched."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from pipeline.store import Database, dead_letters
from pipeline.store.dead_letters import DeadLetterFilter, Decision
from schemas.ids import JobId

JOBS_PER_SECOND = 1_000.0
"""The default rate of a replay, which leaves capacity for new jobs."""

_UNLIMITED = 1e6
_PAGE_JOBS = 500


@dataclass(frozen=True, slots=True)
class DecisionProgress:
    """Dead letters decided about so far, and those skipped because their chunk is still running."""

    decided: int
    busy: int


def replay(
    database: Database, selected: DeadLetterFilter, *, per_second: float = JOBS_PER_SECOND
) -> AsyncIterator[DecisionProgress]:
    """Queue the selected dead letters again, each with its next replay number; yields progress after each transaction.

    Each dead letter is replayed once, however often and by however many callers this is called.
    Recovery publishes the doorbells. Cancelled, it leaves the rest as it was.

    Raises:
        StoreUnavailable: what was yielded is done; call again for the rest.
    """
    return _decide(database, selected, Decision.REPLAYED, per_second)


def discard(database: Database, selected: DeadLetterFilter) -> AsyncIterator[DecisionProgress]:
    """Discard the selected dead letters: they stay failed and are no longer listed. Otherwise like `replay`."""
    return _decide(database, selected, Decision.DISCARDED, _UNLIMITED)


async def _decide(
    database: Database, selected: DeadLetterFilter, decision: Decision, per_second: float
) -> AsyncIterator[DecisionProgress]:
    started, decided, busy = time.monotonic(), 0, 0
    after: JobId | None = None
    limit = max(1, min(_PAGE_JOBS, int(per_second)))
    while True:
        page = await dead_letters.decide(database, selected, decision, after=after, limit=limit)
        decided, busy, after = decided + page.decided, busy + page.busy, page.last
        yield DecisionProgress(decided, busy)
        if after is None:
            return
        await asyncio.sleep(max(0.0, started + decided / per_second - time.monotonic()))
