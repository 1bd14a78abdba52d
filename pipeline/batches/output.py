"""The output of a batch: what is settled as it comes, or in the order of the file; as OpenAI's lines, or as a table."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import orjson

from pipeline.concurrency.backoff import retry_while_unavailable
from pipeline.store import Database, batch_life, batch_output
from pipeline.store.batch_output import Cursor, OutputRow, Window
from pipeline.store.new_rows import RefusedRow
from schemas.batches import BatchView
from schemas.errors import ErrorCode
from schemas.ids import BatchId, JobId

_LOOK_SECONDS = 1.0
_WAITING = "the output waits for the database"
_OF_THE_ENGINE = {ErrorCode.REQUEST_REJECTED, ErrorCode.PROMPT_TOO_LONG}
_NEVER_RAN = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed because the batch was cancelled."),
}


def _answer(row: OutputRow) -> bytes:
    """Return the body of an answer: the engine's for a completion, else the result."""
    assert row.answer is not None, "a succeeded row has an answer"
    if row.kind != "completion":
        return row.answer
    return orjson.dumps(orjson.loads(row.answer)["body"])


def output_line(row: OutputRow) -> bytes:
    """Return the line of a succeeded row, as OpenAI writes it."""
    head = b'{"id":"batch_req_%d","custom_id":%b,"response":{"status_code":200,"request_id":"%d","body":' % (
        row.job_id,
        orjson.dumps(row.custom_id),
        row.job_id,
    )
    return b'%b%b},"error":null}\n' % (head, _answer(row))


def error_line(row: OutputRow) -> bytes:
    """Return the line of a row that did not succeed: with a response where an engine refused it, with an error otherwise."""
    known: dict[str, Any] = {"id": f"batch_req_{row.job_id}", "custom_id": row.custom_id}
    if row.code in _OF_THE_ENGINE:
        error = {"message": row.message, "type": "invalid_request_error", "param": None, "code": row.code}
        response = {"status_code": 400, "request_id": str(row.job_id), "body": {"error": error}}
        return orjson.dumps(known | {"response": response, "error": None}) + b"\n"
    code, message = _NEVER_RAN.get(row.state or "", (row.code, row.message))
    return orjson.dumps(known | {"response": None, "error": {"code": code, "message": message}}) + b"\n"


def refused_line(row: RefusedRow) -> bytes:
    """Return the line of an error file for a line that is no job."""
    field, colon, _ = row.message.partition(": ")
    error = {
        "code": row.code,
        "message": f"line {row.line}: {row.message}",
        "line": row.line,
        "param": field if colon and " " not in field else None,
    }
    return (
        orjson.dumps({"id": f"batch_req_line_{row.line}", "custom_id": row.custom_id, "response": None, "error": error})
        + b"\n"
    )


class BatchOutput:
    """Reads the output of one batch; while the database is away it waits."""

    def __init__(self, database: Database, batch_id: BatchId) -> None:
        self._database = database
        self._batch_id = batch_id

    async def settled(self, cursor: Cursor, *, wait: bool) -> AsyncIterator[tuple[list[OutputRow], Cursor]]:
        """Yield rows as they are settled, each page with the cursor for the rows after it.

        Args:
            cursor: where an earlier reader stopped.
            wait: until the batch has ended; otherwise what is settled now is all.
        """
        while True:
            # Looked at before the rows: what is settled until a batch has ended is read after it.
            ended = not wait or (await self._view()).status.is_final
            more = True
            while more:
                page = await retry_while_unavailable(
                    partial(batch_output.settled_since, self._database, self._batch_id, cursor), _WAITING
                )
                cursor, more = page.next, page.more
                if page.rows or not more:
                    yield page.rows, cursor
            if ended:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def ordered(
        self, *, wait: bool, on_wait: Callable[[int, str], None] = lambda *_: None
    ) -> AsyncIterator[list[OutputRow]]:
        """Yield rows in the order of the file.

        Args:
            wait: for rows that are not settled yet; otherwise the first one of them is the end.
            on_wait: called with the line that is waited for, and why.
        """
        after = -1
        while True:
            # Looked at before the windows: when the file was read to its end, these are all.
            found = await self._view()
            complete = found.input_complete or found.status.is_final
            windows = await retry_while_unavailable(
                partial(batch_output.windows, self._database, self._batch_id, after), _WAITING
            )
            for window in windows:
                async for rows in self._rows_of(window, wait=wait, on_wait=on_wait):
                    if rows is None:
                        return
                    yield rows
                after = window.number
            if (complete and not windows) or not wait:
                return
            if not complete:
                on_wait(found.input_lines + 1, "its file is still read")
                await asyncio.sleep(_LOOK_SECONDS)

    async def _rows_of(
        self, window: Window, *, wait: bool, on_wait: Callable[[int, str], None]
    ) -> AsyncIterator[list[OutputRow] | None]:
        """Yield the rows of a window in pieces, as far as they are settled; None where it ends too early."""
        done = 0
        while True:
            rows = await retry_while_unavailable(
                lambda: batch_output.rows_of(self._database, self._batch_id, window), _WAITING
            )
            upto = next((at for at in range(done, len(rows)) if rows[at].state is None), len(rows))
            if upto > done:
                yield rows[done:upto]
            if upto == len(rows):
                return
            if not wait:
                yield None
                return
            done = upto
            awaited = JobId(rows[upto].job_id)
            on_wait(rows[upto].position + 1, "has no outcome yet")
            await self._until_settled(awaited)

    async def _until_settled(self, job_id: JobId) -> None:
        look = partial(batch_output.is_settled, self._database, job_id)
        while True:
            if await retry_while_unavailable(look, _WAITING):
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def refused(self) -> AsyncIterator[list[RefusedRow]]:
        """Yield the lines of the file that are no jobs, in its order."""
        after = 0
        while rows := await retry_while_unavailable(
            partial(batch_output.refused_lines, self._database, self._batch_id, after), _WAITING
        ):
            yield rows
            after = rows[-1].line

    async def _view(self) -> BatchView:
        return await retry_while_unavailable(lambda: batch_life.view(self._database, self._batch_id), _WAITING)
