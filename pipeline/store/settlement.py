"""Store outcomes, each job once. The primary key of `outcomes` decides every race."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from pipeline.store.database import Database
from pipeline.store.usage import count_usage
from schemas.errors import ErrorCode
from schemas.ids import JobId
from schemas.results import JobState
from schemas.timings import Timings, Usage


class ChunkState(StrEnum):
    """The state of a chunk after a settlement."""

    RUNNING = "running"  # more of its rows are in flight
    DONE = "done"  # every row has an outcome
    QUEUED = "queued"  # it goes back to the queue: handed over, or to be retried later


@dataclass(slots=True)
class SettledRow:
    """The outcome of one row.

    Attributes:
        replay: the replay number that the claim named.
        answer: the JSON of the result.
        label, confidence, score: of the result, if its kind has them; see `kinds.Measures`.
        template_hash, label_set_hash: name the prompt and the labels that the engine was asked with.
        cache_key: the question that this answers; None where no later job may reuse the answer.
        cached_from: the job whose answer was copied.
        batch_rows: rows of the engine request that answered it.
    """

    job_id: JobId
    replay: int
    tenant: str
    kind: str
    state: JobState
    answer: bytes | None = None
    code: ErrorCode | None = None
    message: str | None = None
    label: str | None = None
    confidence: float | None = None
    score: float | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    attempts: int = 0
    model: str | None = None
    model_revision: str | None = None
    endpoint: str | None = None
    engine_version: str | None = None
    template_hash: str | None = None
    label_set_hash: str | None = None
    simulated: bool = False
    cache_key: UUID | None = None
    cached_from: JobId | None = None
    batch_rows: int | None = None


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """An engine attempt that failed and counts against the job."""

    job_id: JobId
    replay: int
    tenant: str
    attempt: int
    code: ErrorCode
    endpoint: str | None


@dataclass(frozen=True, slots=True)
class Settlement:
    """What one run stores at once: settled rows, failed attempts, and the next state of the chunk.

    Attributes:
        delay: with QUEUED, the time until the chunk may be claimed again.
        retry: with QUEUED, whether this round failed (it lengthens the next delay) or the chunk is
            only handed over.
    """

    first_job_id: JobId
    fence: int
    rows: Sequence[SettledRow] = ()
    failures: Sequence[FailedAttempt] = ()
    next_state: ChunkState = ChunkState.RUNNING
    delay: timedelta = timedelta()
    retry: bool = False
    code: ErrorCode | None = None


# Attributes of a SettledRow and their SQL types; the last part of the path is the column of `outcomes`.
_OUTCOME = {
    "job_id": "bigint",
    "replay": "smallint",
    "tenant": "text",
    "kind": "text",
    "state": "text",
    "code": "text",
    "message": "text",
    "label": "text",
    "confidence": "real",
    "score": "real",
    "usage.prompt_tokens": "int",
    "usage.completion_tokens": "int",
    "timings.queue_wait_seconds": "real",
    "timings.batch_wait_seconds": "real",
    "timings.first_token_seconds": "real",
    "timings.engine_seconds": "real",
    "timings.total_seconds": "real",
    "attempts": "smallint",
    "model": "text",
    "model_revision": "text",
    "endpoint": "text",
    "engine_version": "text",
    "template_hash": "text",
    "label_set_hash": "text",
    "simulated": "bool",
    "cached_from": "bigint",
    "batch_rows": "smallint",
}
_COLUMNS = [path.rpartition(".")[2] for path in _OUTCOME]
_GIVEN = ["chunk", "fence", "cache_key", *_COLUMNS]
_GIVEN_TYPES = ["bigint", "int", "uuid", *_OUTCOME.values()]
_FAILURE = {
    "job_id": "bigint",
    "replay": "smallint",
    "tenant": "text",
    "attempt": "smallint",
    "code": "text",
    "endpoint": "text",
}
_row_values = attrgetter("cache_key", *_OUTCOME)
_failure_values = attrgetter(*_FAILURE)


def _declared(names: Sequence[str], types: Sequence[str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in zip(names, types, strict=True))


_SETTLE = f"""
WITH settlement AS (
    SELECT * FROM json_to_recordset(%(settlements)s::json)
        AS r(chunk bigint, fence int, next_state text, delay float8, retry bool, code text)
), held AS MATERIALIZED (
    SELECT c.first_job_id, c.rows, c.fence, c.lane FROM chunks c
    JOIN settlement r ON r.chunk = c.first_job_id AND r.fence = c.fence
    WHERE c.state = 'running' ORDER BY c.first_job_id FOR UPDATE OF c SKIP LOCKED
), given AS MATERIALIZED (
    SELECT g.* FROM ROWS FROM (
        json_to_recordset(%(rows)s::json) AS ({_declared(_GIVEN, _GIVEN_TYPES)}), unnest(%(answers)b::bytea[])
    ) AS g({", ".join(_GIVEN)}, answer)
    JOIN held h ON h.first_job_id = g.chunk AND h.fence = g.fence
), stored AS (
    INSERT INTO outcomes (answer, {", ".join(_COLUMNS)}) SELECT answer, {", ".join(_COLUMNS)}
    FROM given ON CONFLICT DO NOTHING RETURNING job_id, state, prompt_tokens, completion_tokens, cached_from,
        tenant, model, kind, queue_wait_seconds, engine_seconds
), used AS ({count_usage("stored", "(SELECT lane FROM held LIMIT 1)")}  -- of one worker process: all have one lane
), cached AS (
    -- The newest answer is the one to find: an older one may be deleted, or have lost to a cancel.
    INSERT INTO answer_cache (key, tenant, job_id, replay)
    SELECT DISTINCT ON (cache_key) cache_key, tenant, job_id, replay FROM given WHERE cache_key IS NOT NULL
    ORDER BY cache_key
    ON CONFLICT (key) DO UPDATE
        SET job_id = excluded.job_id, replay = excluded.replay, tenant = excluded.tenant, created_at = excluded.created_at
), failed AS (
    INSERT INTO failed_attempts ({", ".join(_FAILURE)})
    SELECT {", ".join(f"f.{name}" for name in _FAILURE)} FROM json_to_recordset(%(failures)s::json)
        AS f(chunk bigint, fence int, {_declared([*_FAILURE], [*_FAILURE.values()])})
    JOIN held h ON h.first_job_id = f.chunk AND h.fence = f.fence ON CONFLICT DO NOTHING
), counted AS (
    -- Joined by the range of the chunk, not by the rows given: comparing two lists of thousands is quadratic.
    SELECT h.first_job_id AS chunk, count(*) FILTER (WHERE s.state = 'succeeded') AS succeeded,
        count(*) FILTER (WHERE s.state = 'failed') AS failed,
        count(*) FILTER (WHERE s.state = 'expired') AS expired, count(s.cached_from) AS cached,
        sum(s.prompt_tokens) AS prompt_tokens, sum(s.completion_tokens) AS completion_tokens
    FROM stored s JOIN held h ON s.job_id >= h.first_job_id AND s.job_id < h.first_job_id + h.rows GROUP BY h.first_job_id
), written AS (UPDATE chunks c SET
    succeeded = c.succeeded + coalesce(n.succeeded, 0), failed = c.failed + coalesce(n.failed, 0),
    expired = c.expired + coalesce(n.expired, 0), cached = c.cached + coalesce(n.cached, 0),
    prompt_tokens = c.prompt_tokens + coalesce(n.prompt_tokens, 0),
    completion_tokens = c.completion_tokens + coalesce(n.completion_tokens, 0),
    state = r.next_state, last_code = coalesce(r.code, c.last_code),
    rounds = CASE WHEN r.retry THEN c.rounds + 1 ELSE c.rounds END,
    due_at = CASE WHEN r.next_state = 'queued' THEN now() + make_interval(secs => r.delay) ELSE c.due_at END,
    run_id = CASE WHEN r.next_state = 'running' THEN c.run_id END,
    lease_expires_at = CASE WHEN r.next_state = 'running' THEN c.lease_expires_at END,
    finished_at = CASE WHEN r.next_state = 'done' THEN now() END
FROM settlement r JOIN held h ON h.first_job_id = r.chunk AND h.fence = r.fence LEFT JOIN counted n ON n.chunk = r.chunk
WHERE c.first_job_id = r.chunk
RETURNING c.first_job_id, c.fence
)
SELECT r.chunk, r.fence, w.first_job_id IS NOT NULL AS written
FROM settlement r LEFT JOIN written w ON w.first_job_id = r.chunk AND w.fence = r.fence
-- Not written, but running with this fence: another process has it locked at this moment.
WHERE w.first_job_id IS NOT NULL
    OR EXISTS (SELECT FROM chunks c WHERE c.first_job_id = r.chunk AND c.fence = r.fence AND c.state = 'running')
"""


def _arguments(settlements: Sequence[Settlement]) -> dict[str, Any]:
    """Three JSON arrays, and the answers beside the rows they belong to, in the same order."""
    chunks = [
        {
            "chunk": settlement.first_job_id,
            "fence": settlement.fence,
            "next_state": settlement.next_state,
            "delay": settlement.delay.total_seconds(),
            "retry": settlement.retry,
            "code": settlement.code,
        }
        for settlement in settlements
    ]
    rows = [
        # Without the fields that are None: they are a third of the cost of reading it.
        {name: value for name, value in zip(_GIVEN, values, strict=True) if value is not None}
        for settlement in settlements
        for values in ((settlement.first_job_id, settlement.fence, *_row_values(row)) for row in settlement.rows)
    ]
    failures = [
        {
            "chunk": settlement.first_job_id,
            "fence": settlement.fence,
            **dict(zip(_FAILURE, _failure_values(one), strict=True)),
        }
        for settlement in settlements
        for one in settlement.failures
    ]
    return {
        "settlements": orjson.dumps(chunks).decode(),
        "rows": orjson.dumps(rows).decode(),
        "answers": [row.answer for settlement in settlements for row in settlement.rows],
        "failures": orjson.dumps(failures).decode(),
    }


class Settled(NamedTuple):
    """First job id and fence of what was written, and of what another process has locked: settle that again."""

    written: set[tuple[JobId, int]]
    locked: set[tuple[JobId, int]]


async def settle(database: Database, settlements: Sequence[Settlement]) -> Settled:
    """Store the settlements of several runs in one statement.

    Where a cancel, an expiry or an earlier run was first, its outcome stays. A run whose fence is
    no longer the chunk's writes nothing. A chunk that another process has locked is left out, so that
    no run waits for that of another. Safe to call again with the same settlements, also after a
    commit whose reply was lost: stored rows stay, and a chunk that is not `running` is not changed.

    Raises:
        StoreUnavailable: no database; nothing is known to be written, call again.
        UnstorableValue: Postgres cannot store one of the values; nothing was written.
    """
    async with database.connection() as connection:
        cursor = await connection.execute(_SETTLE, _arguments(settlements))
        rows = await cursor.fetchall()
    found = {
        written: {(JobId(row["chunk"]), row["fence"]) for row in rows if row["written"] is written}
        for written in (True, False)
    }
    return Settled(found[True], found[False])
