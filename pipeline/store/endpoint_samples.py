"""Measurements of endpoints by worker processes, every few seconds: `yyc3 queues` shows the newest; kept for a week."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

from pipeline.store.database import Database

SAMPLE_SECONDS = 5.0
_FRESH_SECONDS = 3 * SAMPLE_SECONDS
_KEEP_DAYS = 7


@dataclass(frozen=True, slots=True)
class EndpointSample:
    """One endpoint as one worker process measured it.

    Attributes:
        state: of the circuit breaker: closed (in use), paused or open.
        problem: what is wrong with it; None if nothing is.
        in_flight, limit_rows: rows sent and unanswered, and how many there may be.
        waiting_rows: rows in the process that wait for capacity at any endpoint of the model.
        rows_per_second, tokens_per_second: answered since the last sample; completion tokens.
        errors: requests that failed as a whole since the last sample.
        engine_running, engine_waiting, kv_usage: the engine's own metrics; None where it has none.
    """

    worker: str
    endpoint: str
    model: str
    lane: str
    state: str
    problem: str | None
    in_flight: int
    limit_rows: int
    waiting_rows: int
    rows_per_second: float
    tokens_per_second: float
    errors: int
    engine_running: float | None
    engine_waiting: float | None
    kv_usage: float | None


_COLUMNS = ", ".join(field.name for field in fields(EndpointSample))
_MARKS = ", ".join(["%s"] * len(fields(EndpointSample)))


async def write(database: Database, samples: Sequence[EndpointSample]) -> None:
    """Store the samples of a process."""
    async with database.transaction() as connection, connection.cursor() as cursor:
        await cursor.executemany(
            f"INSERT INTO endpoint_samples ({_COLUMNS}) VALUES ({_MARKS}) ON CONFLICT DO NOTHING",
            [astuple(sample) for sample in samples],
        )


async def latest(database: Database) -> list[EndpointSample]:
    """Return the newest sample of each process and endpoint, of processes that took one in the last 15 s."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""SELECT DISTINCT ON (worker, endpoint, model) {_COLUMNS} FROM endpoint_samples
                WHERE at > now() - make_interval(secs => %s) ORDER BY worker, endpoint, model, at DESC""",
            (_FRESH_SECONDS,),
        )
        return [EndpointSample(**row) for row in await cursor.fetchall()]


async def delete_old(database: Database) -> int:
    """Delete samples older than a week and return how many."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "DELETE FROM endpoint_samples WHERE at < now() - make_interval(days => %s)", (_KEEP_DAYS,)
        )
        return cursor.rowcount
