"""Pause, cancel and retry whole batches: as many statements as they need."""

import asyncio
from dataclasses import dataclass

from pipeline.store import Database, batch_life, pauses
from schemas.batches import BatchStatus, BatchView
from schemas.errors import InvalidJob
from schemas.ids import BatchId, JobId
from schemas.job import can_be_stored

_LOCKED_SECONDS = 0.1
_FEW_CHUNKS = 500
_PATIENCE_SECONDS = 30.0
_LONGEST_REASON = 500


async def cancel(database: Database, batch_id: BatchId) -> BatchView:
    """Cancel the rows of a batch that have no outcome; requests in flight are aborted within a second or two.

    Safe to call again. A batch that has ended stays as it is.

    Raises:
        BatchNotFound: there is no such batch.
        StoreUnavailable: call again.
    """
    found = await batch_life.view(database, batch_id)
    if found.status.is_final:
        return found
    await batch_life.cancel(database, batch_id)
    end = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
    while left := await batch_life.cancel_chunks(database, batch_id):
        if asyncio.get_running_loop().time() > end:
            break  # an unusual lock: the batch is `cancelling`, and the same call goes on with it
        if left < _FEW_CHUNKS:
            await asyncio.sleep(_LOCKED_SECONDS)  # results of it are being stored at this moment
    return await batch_life.view(database, batch_id)


async def pause(database: Database, batch_id: BatchId, *, by_whom: str, reason: str) -> BatchView:
    """Let no more rows of a batch begin until it is resumed; one that has ended stays as it is. Safe to call again.

    Raises:
        BatchNotFound: there is no such batch.
        InvalidJob: names what is wrong with the reason.
        StoreUnavailable: call again.
    """
    for field, text in (("by_whom", by_whom), ("reason", reason)):
        if not isinstance(text, str) or not 0 < len(text) <= _LONGEST_REASON or not can_be_stored(text):
            raise InvalidJob(f"{field}: must be text of 1 to {_LONGEST_REASON} characters, without NUL")
    found = await batch_life.view(database, batch_id)
    if found.status.is_final:
        return found
    await pauses.pause(database, batch_id, by_whom=by_whom, reason=reason)
    return await batch_life.view(database, batch_id)


@dataclass(frozen=True, slots=True)
class Retried:
    """What runs again, and chunks that could not be looked into because they run."""

    rows: int
    busy_chunks: int


async def retry(database: Database, batch_id: BatchId) -> Retried:
    """Run exactly the rows of a batch again that failed, expired or were cancelled; its window begins again.

    Raises:
        BatchNotFound: there is no such batch.
        InvalidJob: its file was refused, so it has no rows.
        StoreUnavailable: call again.
    """
    found = await batch_life.view(database, batch_id)
    if found.status is BatchStatus.FAILED:
        raise InvalidJob(f"batch {batch_id} has no rows: its file was refused; submit the mended file")
    await batch_life.begin_retry(database, batch_id)
    rows = busy = 0
    after: JobId | None = None
    while True:
        page = await batch_life.retry_chunks(database, batch_id, after=after)
        rows += page.rows
        busy += page.busy
        after = page.last
        if after is None:
            return Retried(rows, busy)
