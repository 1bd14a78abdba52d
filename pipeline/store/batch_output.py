"""The rows of a batch as they are settled, in the order of their commits or in that of the file.

A cursor names transactions: a page has the outcomes of those that have ended for certain, so that one that commits late is
never skipped, and none comes again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Self

from psycopg.rows import tuple_row

from pipeline.store.database import Database
from pipeline.store.replays import is_current
from schemas.errors import ErrorCode, InvalidJob
from schemas.ids import BatchId, JobId

_CURSOR = re.compile(r"(\d{1,19})\.(\d{1,19})\.(\d{1,19})")
_CHUNKS = 64


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
        found = _CURSOR.fullmatch(text)
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
    THEN pg_snapshot_xmin(pg_current_snapshot()) ELSE pg_snapshot_xmax(pg_current_snapshot()) END::text::bigint AS upto
"""
# xmin is the last transaction that changed a chunk, 32 bits of it: chunks in which nothing happened are not looked into.
_CHANGED = """
SELECT first_job_id, rows, state FROM chunks
WHERE batch_id = %(batch)s AND first_job_id + rows > %(job)s
    AND ((xmin::text::bigint - %(before)s) & 4294967295) < 2147483648
ORDER BY first_job_id LIMIT %(chunks)s
"""
_SETTLED = f"""
SELECT {_JOB}, o.state, {_OUTCOME} FROM unnest(%(firsts)s::bigint[], %(rows)s::int[]) AS c(first_job_id, rows)
CROSS JOIN LATERAL (
    SELECT * FROM outcomes o WHERE o.job_id >= c.first_job_id AND o.job_id < c.first_job_id + c.rows AND o.job_id > %(job)s
        AND coalesce(o.xid, 0) >= %(before)s AND coalesce(o.xid, 0) < %(upto)s AND {is_current("o")}
) o JOIN jobs j ON j.job_id = o.job_id AND j.job_id = ANY(%(ids)s)
ORDER BY o.job_id
"""
# Rows of a cancelled chunk without an outcome: the cancel of the batch is what settled them.
_BARE = f"""
SELECT {_JOB}, 'cancelled', 'cancelled', NULL, NULL, c.model, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    c.finished_at
FROM chunks c JOIN jobs j ON j.job_id >= c.first_job_id AND j.job_id < c.first_job_id + c.rows AND j.job_id = ANY(%(ids)s)
WHERE c.first_job_id = ANY(%(firsts)s) AND c.state = 'cancelled' AND j.job_id > %(job)s
    AND ((c.xmin::text::bigint - %(before)s) & 4294967295) < 2147483648
    AND NOT EXISTS (SELECT FROM outcomes o WHERE o.job_id = j.job_id AND {is_current("o")})
ORDER BY j.job_id
"""


async def settled_since(database: Database, batch_id: BatchId, cursor: Cursor) -> OutputPage:
    """Return rows that were settled after a cursor: those of at most 64 chunks, in no promised order."""
    arguments: dict[str, Any] = {"batch": batch_id, "before": cursor.before, "job": cursor.job, "chunks": _CHUNKS}
    async with database.connection() as connection:
        upto = cursor.upto
        if upto <= cursor.before:
            horizon = await (await connection.execute(_HORIZON, arguments)).fetchone()
            assert horizon is not None, "it is one row"
            upto, arguments["job"] = max(horizon["upto"], cursor.before), 0  # a retry makes the horizon an earlier one
        chunks = await (await connection.execute(_CHANGED, arguments)).fetchall()
        if not chunks:
            return OutputPage([], Cursor(upto, upto, 0), more=False)
        arguments |= {"firsts": [one["first_job_id"] for one in chunks], "rows": [one["rows"] for one in chunks]}
        arguments |= {"upto": upto, "ids": _ids(chunks)}
        found = await _rows(connection, _SETTLED, arguments)
        if any(one["state"] == "cancelled" for one in chunks):
            found += await _rows(connection, _BARE, arguments)
    last = chunks[-1]["first_job_id"] + chunks[-1]["rows"] - 1
    more = len(chunks) == _CHUNKS
    return OutputPage(found, Cursor(cursor.before, upto, last) if more else Cursor(upto, upto, 0), more)


def _ids(chunks: Sequence[Any]) -> list[int]:
    # Without the ids the planner may read whole partitions.
    return [job for one in chunks for job in range(one["first_job_id"], one["first_job_id"] + one["rows"])]


async def _rows(connection: Any, statement: str, arguments: dict[str, Any]) -> list[OutputRow]:
    async with connection.cursor(row_factory=tuple_row, binary=True) as reading:
        await reading.execute(statement, arguments)
        return [OutputRow(*row) for row in await reading.fetchall()]


_BY_POSITION = f"""
SELECT {_JOB}, coalesce(o.state, CASE WHEN c.state = 'cancelled' THEN 'cancelled' END),
    {_OUTCOME.replace("o.code", "coalesce(o.code, CASE WHEN c.state = 'cancelled' THEN 'cancelled' END)", 1)}
FROM unnest(%(firsts)s::bigint[], %(rows)s::int[], %(states)s::text[]) AS c(first_job_id, rows, state)
JOIN jobs j ON j.job_id >= c.first_job_id AND j.job_id < c.first_job_id + c.rows AND j.job_id = ANY(%(ids)s)
LEFT JOIN LATERAL (
    SELECT * FROM outcomes o WHERE o.job_id = j.job_id AND {is_current("o")} LIMIT 1
) o ON true
ORDER BY j.position
"""


@dataclass(frozen=True, slots=True)
class Window:
    """Jobs among which ids do not follow the lines: the chunks of one window of the input."""

    number: int
    chunks: tuple[tuple[JobId, int], ...]


async def windows(database: Database, batch_id: BatchId, after: int) -> list[Window]:
    """Return the windows of a batch after one, in the order of its file; a batch of a former version is one window."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            """SELECT coalesce(input_window, 0) AS number, array_agg(first_job_id ORDER BY first_job_id) AS firsts,
                      array_agg(rows ORDER BY first_job_id) AS rows
               FROM chunks WHERE batch_id = %s AND coalesce(input_window, 0) > %s GROUP BY 1 ORDER BY min(first_job_id)""",
            (batch_id, after),
        )
        return [
            Window(row["number"], tuple(zip(row["firsts"], row["rows"], strict=True)))
            for row in await cursor.fetchall()
        ]


async def rows_of(database: Database, window: Window) -> list[OutputRow]:
    """Return the rows of a window in the order of their lines, with their current outcomes."""
    firsts = [first for first, _ in window.chunks]
    async with database.connection() as connection:
        chunks = await (
            await connection.execute(
                """SELECT first_job_id, rows, state FROM chunks
                   WHERE first_job_id >= %s AND first_job_id < %s AND batch_id = (
                       SELECT batch_id FROM chunks WHERE first_job_id = %s)
                   ORDER BY first_job_id""",
                (min(firsts), max(first + rows for first, rows in window.chunks), firsts[0]),
            )
        ).fetchall()
        arguments = {
            "firsts": [one["first_job_id"] for one in chunks],
            "rows": [one["rows"] for one in chunks],
            "states": [one["state"] for one in chunks],
            "ids": _ids(chunks),
        }
        return await _rows(connection, _BY_POSITION, arguments)


@dataclass(frozen=True, slots=True)
class RefusedLineRow:
    """A line of the file that is no job."""

    line: int
    custom_id: str | None
    code: ErrorCode
    message: str


async def refused_lines(database: Database, batch_id: BatchId, after: int, limit: int = 5_000) -> list[RefusedLineRow]:
    """Return lines of the file that are no jobs, in its order."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            """SELECT line, custom_id, code, message FROM refused_lines WHERE batch_id = %s AND line > %s
               ORDER BY line LIMIT %s""",
            (batch_id, after, limit),
        )
        return [RefusedLineRow(**{**row, "code": ErrorCode(row["code"])}) for row in await cursor.fetchall()]
