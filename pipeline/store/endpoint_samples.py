"""How worker processes find their endpoints, every few seconds: the newest for `yyc3 queues`, a week for later questions."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from datetime import datetime

from pipeline.store.database import Database

SAMPLE_SECONDS = 5.0
_FRESH_SECONDS = 3 * SAMPLE_SECONDS
_KEEP_DAYS = 7


@dataclass(frozen=True, slots=True)
class EndpointSample:
    """One endpoint as one worker process sees it.

    Attributes:
        state: of the circuit breaker: closed (it is asked), paused or open.
        in_flight, limit_rows: rows sent and not answered, and how many there may be.
        waiting_rows: rows that wait in the process for room at any endpoint of the model.
        rows_per_second, tokens_per_second: answered since the last sample; tokens are those written.
        errors: requests that failed as a whole since the last sample.
        engine_running, engine_waiting, kv_usage: what the engine itself says; None where it says nothing.
    """

    worker: str
    endpoint: str
    model: str
    lane: str
    state: str
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
    """Store what a process sees now."""
    async with database.transaction() as connection, connection.cursor() as cursor:
        await cursor.executemany(
            f"INSERT INTO endpoint_samples ({_COLUMNS}) VALUES ({_MARKS}) ON CONFLICT DO NOTHING",
            [astuple(sample) for sample in samples],
        )


async def latest(database: Database) -> list[EndpointSample]:
    """The newest sample of each process and endpoint, of processes that took one lately."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""SELECT DISTINCT ON (worker, endpoint, model) {_COLUMNS} FROM endpoint_samples
                WHERE at > now() - make_interval(secs => %s) ORDER BY worker, endpoint, model, at DESC""",
            (_FRESH_SECONDS,),
        )
        return [EndpointSample(**row) for row in await cursor.fetchall()]


async def since(database: Database, start: datetime) -> list[tuple[datetime, EndpointSample]]:
    """Every sample from an instant on, oldest first."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"SELECT at, {_COLUMNS} FROM endpoint_samples WHERE at >= %s ORDER BY at", (start,)
        )
        return [(row.pop("at"), EndpointSample(**row)) for row in await cursor.fetchall()]


async def forget_old(database: Database) -> int:
    """Delete samples older than a week."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "DELETE FROM endpoint_samples WHERE at < now() - make_interval(days => %s)", (_KEEP_DAYS,)
        )
        return cursor.rowcount


__all__ = ["SAMPLE_SECONDS", "EndpointSample", "forget_old", "latest", "since", "write"]
