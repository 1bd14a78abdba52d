"""The rows of a batch as they are settled, in the order of their commits or in that of the file.

A cursor names transactions: a page has the outcomes of those that have ended for certain, so that one that commits late is
never skipped, and none comes again.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any, NamedTuple, Self

from psycopg.rows import tuple_row

from pipeline.store.database import Database
from pipeline.store.new_rows import RefusedRow
from pipeline.store.replays import is_current
from schemas.errors import ErrorCode, InvalidJob
from schemas.ids import BatchId, JobId

_CURSOR = re.compile(r"(\d{1,18})\.(\d{1,18})\.(\d{1,18})")
_CHUNKS = 8
_NEAR_IDS = 2_048
_HALF_OF_XMIN = 2**31 - 1


class OutputRow(NamedTuple):
    """A row of a batch; without a state it has no outcome yet.

    Attributes:
        position: of its line, from 0.
        state: of its outcome; `cancelled` also if it was cancelled with its batch.
        answer: the JSON of its result.
    """

    job_id: int
    position: int
    custom_id: str | None
    kind: str
    state: str | None
    code: str | None
    message: str | None
    answer: bytes | None
    model: str | None
    label: str | None
    confidence: float | None
    score: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_from: int | None
    simulated: bool | None
    attempts: int | None
    queue_wait_seconds: float | None
    engine_seconds: float | None
    total_seconds: float | None
    settled_at: datetime | None


_OUTCOME = """o.code, o.message, o.answer, o.model, o.label, o.confidence, o.score, o.prompt_tokens, o.completion_tokens,
    o.cached_from, o.simulated, o.attempts, o.queue_wait_seconds, o.engine_seconds, o.total_seconds, o.settled_at"""
_JOB = "j.job_id, coalesce(j.position, 0), j.custom_id, j.kind"


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a reader stands: outcomes of transactions before `before` were read, of those up to `upto` the jobs up to `job`."""

    before: int = 0
    upto: int = 0
    job: int = 0

    def __str__(self) -> str:
        return f"{self.before}.{self.upto}.{self.job}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the cursor of a text.

        Raises:
            InvalidJob: it is none.
        """
        found = _CURSOR.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise InvalidJob("cursor: is none of ours; leave it out to begin at the start")
        return cls(*map(int, found.groups()))


@dataclass(frozen=True, slots=True)
class OutputPage:
    """Rows that were settled; `next` is for the rows after them, `more` says whether there are any at this moment."""

    rows: list[OutputRow]
    next: Cursor
    more: bool


# The end of the transactions that are over for certain. When no chunk is open, all that this snapshot sees is all there is.
_HORIZON = """
SELECT CASE WHEN EXISTS (SELECT FROM chunks WHERE batch_id = %(batch)s AND state IN ('queued', 'running'))
    THEN pg_snapshot_xmin(pg_current_snapshot()) ELSE pg_snapshot_xmax(pg_current_snapshot()) END::text::bigint AS upto,
    pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS newest
"""
# xmin is the last transaction that changed a chunk, 32 bits of it: chunks in which nothing happened are not looked into.
_CHANGED = """
SELECT first_job_id, rows, state, ((%(upto)s - 1 - xmin::text::bigint) & 4294967295) < 2147483648
    OR finished_at < now() - interval '1 hour' AS is_over
FROM chunks WHERE batch_id = %(batch)s AND first_job_id + rows - 1 > %(job)s
    AND (%(whole)s OR ((xmin::text::bigint - %(before)s) & 4294967295) < 2147483648)
ORDER BY first_job_id LIMIT %(chunks)s
"""
# Both tables by a range of ids that is known when it is planned: without it the planner may read whole partitions.
_IN_RANGE = "j.job_id >= %(first)s AND j.job_id < %(end)s AND j.batch_id = %(batch)s"
_SETTLED = f"""
SELECT {_JOB}, o.state, {_OUTCOME} FROM outcomes o JOIN jobs j ON j.job_id = o.job_id
WHERE o.job_id >= %(first)s AND o.job_id < %(end)s AND o.job_id > %(job)s AND {_IN_RANGE}
    AND coalesce(o.xid, 0) >= %(before)s AND coalesce(o.xid, 0) < %(upto)s AND {is_current("o")}
ORDER BY o.job_id
"""
_WITH_OUTCOMES = f"""
SELECT {_JOB}, o.state, {_OUTCOME} FROM jobs j
LEFT JOIN outcomes o ON o.job_id = j.job_id AND o.job_id >= %(first)s AND o.job_id < %(end)s AND {is_current("o")}
WHERE {_IN_RANGE} ORDER BY j.job_id
"""


class _Chunk(NamedTuple):
    first: int
    rows: int
    state: str
    is_over: bool = True

    @property
    def end(self) -> int:
        return self.first + self.rows


async def settled_since(database: Database, batch_id: BatchId, cursor: Cursor) -> OutputPage:
    """Return rows that were settled after a cursor: those of a few chunks, in no promised order."""
    given: dict[str, Any] = {"batch": batch_id, "before": cursor.before, "job": cursor.job, "chunks": _CHUNKS}
    async with database.connection() as connection:
        horizon = await (await connection.execute(_HORIZON, given)).fetchone()
        assert horizon is not None, "it is one row"
        upto = cursor.upto
        if max(upto, cursor.before) > horizon["newest"]:
            raise InvalidJob("cursor: is of another database; leave it out to begin at the start")
        if upto <= cursor.before:
            upto, given["job"] = max(horizon["upto"], cursor.before), 0  # a retry makes the horizon an earlier one
        given |= {"upto": upto, "whole": not cursor.before or upto - cursor.before >= _HALF_OF_XMIN}
        chunks = [_Chunk(*row.values()) for row in await (await connection.execute(_CHANGED, given)).fetchall()]
        found: list[OutputRow] = []
        for first, end in _ranges(chunks):
            found += await _rows(connection, _SETTLED, given | {"first": first, "end": end})
        cancelled = [one for one in chunks if one.state == "cancelled" and one.is_over]
        for first, end in _ranges(cancelled):
            rows = await _rows(connection, _WITH_OUTCOMES, given | {"first": first, "end": end})
            found += _of_chunks([row for row in rows if row.state is None], cancelled)
    more = len(chunks) == _CHUNKS
    return OutputPage(found, Cursor(cursor.before, upto, chunks[-1].end - 1) if more else Cursor(upto, upto, 0), more)


def _ranges(chunks: Sequence[_Chunk]) -> list[tuple[int, int]]:
    """Return ranges of ids that have the chunks, and little else."""
    ranges: list[tuple[int, int]] = []
    for chunk in chunks:
        if ranges and chunk.first - ranges[-1][1] < _NEAR_IDS:
            ranges[-1] = (ranges[-1][0], chunk.end)
        else:
            ranges.append((chunk.first, chunk.end))
    return ranges


def _of_chunks(rows: Sequence[OutputRow], chunks: Sequence[_Chunk]) -> list[OutputRow]:
    """Return the rows of these chunks; one without an outcome was cancelled with its batch if its chunk says so."""
    firsts, found = [chunk.first for chunk in chunks], []
    for row in rows:
        chunk = chunks[bisect_right(firsts, row.job_id) - 1]
        if chunk.first <= row.job_id < chunk.end:
            bare = row.state is None and chunk.state == "cancelled"
            found.append(row._replace(state="cancelled", code="cancelled") if bare else row)
    return found


async def _rows(connection: Any, statement: str, arguments: dict[str, Any]) -> list[OutputRow]:
    async with connection.cursor(row_factory=tuple_row, binary=True) as reading:
        await reading.execute(statement, arguments)
        return [OutputRow(*row) for row in await reading.fetchall()]


@dataclass(frozen=True, slots=True)
class Window:
    """Jobs among which ids do not follow the lines: the range of one window of the input."""

    number: int
    first: JobId
    end: JobId


async def windows(database: Database, batch_id: BatchId, after: int) -> list[Window]:
    """Return the windows of a batch after one, in the order of its file; a batch of a former version is one window."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            """SELECT coalesce(input_window, 0) AS number, min(first_job_id) AS first, max(first_job_id + rows) AS end
               FROM chunks WHERE batch_id = %s AND coalesce(input_window, 0) > %s GROUP BY 1 ORDER BY 1""",
            (batch_id, after),
        )
        return [Window(**row) for row in await cursor.fetchall()]


async def rows_of(database: Database, batch_id: BatchId, window: Window) -> list[OutputRow]:
    """Return the rows of a window in the order of their lines, with their current outcomes."""
    given = {"batch": batch_id, "number": window.number, "first": window.first, "end": window.end}
    async with database.connection() as connection:
        cursor = await connection.execute(
            """SELECT first_job_id, rows, state FROM chunks
               WHERE batch_id = %(batch)s AND first_job_id >= %(first)s AND first_job_id < %(end)s
                   AND coalesce(input_window, 0) = %(number)s ORDER BY first_job_id""",
            given,
        )
        chunks = [_Chunk(*row.values()) for row in await cursor.fetchall()]
        found: list[OutputRow] = []
        for first, end in _ranges(chunks):
            found += await _rows(connection, _WITH_OUTCOMES, given | {"first": first, "end": end})
    return sorted(_of_chunks(found, chunks), key=attrgetter("position"))


async def is_settled(database: Database, job_id: JobId) -> bool:
    """Whether a job has an outcome, or was cancelled with its batch."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""SELECT EXISTS (SELECT FROM outcomes o WHERE o.job_id = %(job)s AND {is_current("o")}) OR (
                    SELECT state = 'cancelled' FROM chunks WHERE first_job_id <= %(job)s ORDER BY first_job_id DESC LIMIT 1
                ) AS settled""",
            {"job": job_id},
        )
        row = await cursor.fetchone()
    return bool(row and row["settled"])


async def refused_lines(database: Database, batch_id: BatchId, after: int, limit: int = 5_000) -> list[RefusedRow]:
    """Return lines of the file that are no jobs, in its order."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            """SELECT line, custom_id, code, message FROM refused_lines WHERE batch_id = %s AND line > %s
               ORDER BY line LIMIT %s""",
            (batch_id, after, limit),
        )
        return [RefusedRow(**{**row, "code": ErrorCode(row["code"])}) for row in await cursor.fetchall()]
