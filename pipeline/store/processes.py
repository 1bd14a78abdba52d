"""Heartbeats: what each process says of itself every few seconds."""

from dataclasses import astuple, dataclass, fields
from datetime import datetime
from enum import StrEnum

from pipeline.store.database import Database

REPORT_SECONDS = 5.0
_SILENT_SECONDS = 3 * REPORT_SECONDS
_KEEP_HOURS = 24


class Role(StrEnum):
    """What a process does."""

    WORKER = "worker"
    RECOVERY = "recovery"
    INTAKE = "intake"
    FLOWER = "flower"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a process says of itself.

    Attributes:
        name: of the process, unique.
        models_hash: of its entries of models.toml; processes of one pipeline should have the same.
        lease_seconds: as it was set; workers and recovery must have the same.
        holds: chunks, messages or the like that it works on.
    """

    name: str
    role: Role
    version: str
    models_hash: str
    lease_seconds: float
    holds: int


@dataclass(frozen=True, slots=True)
class SeenProcess:
    """A heartbeat, when it was stored, and whether the process is silent: it hangs, is suspended, or was lost."""

    heartbeat: Heartbeat
    started_at: datetime
    seen_at: datetime
    silent: bool


_COLUMNS = [field.name for field in fields(Heartbeat)]
_REPORT = f"""
INSERT INTO processes ({", ".join(_COLUMNS)}) VALUES ({", ".join(["%s"] * len(_COLUMNS))})
ON CONFLICT (name) DO UPDATE SET seen_at = now(), {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)}
"""


async def report(database: Database, heartbeat: Heartbeat) -> None:
    """Store that a process lives."""
    async with database.connection() as connection:
        await connection.execute(_REPORT, astuple(heartbeat))


async def stopped(database: Database, name: str) -> None:
    """Forget a process that stops."""
    async with database.connection() as connection:
        await connection.execute("DELETE FROM processes WHERE name = %s", (name,))


async def seen(database: Database) -> list[SeenProcess]:
    """Return every process that did not stop by itself, by role and name."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            f"""SELECT {", ".join(_COLUMNS)}, started_at, seen_at, seen_at < now() - make_interval(secs => %s) AS silent
                FROM processes ORDER BY role, name""",
            (_SILENT_SECONDS,),
        )
        rows = await cursor.fetchall()
    found = []
    for row in rows:
        heartbeat = Heartbeat(**{name: row[name] for name in _COLUMNS if name != "role"}, role=Role(row["role"]))
        found.append(SeenProcess(heartbeat, row["started_at"], row["seen_at"], row["silent"]))
    return found


async def delete_old(database: Database) -> int:
    """Delete processes that were not heard of for a day and return how many."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "DELETE FROM processes WHERE seen_at < now() - make_interval(hours => %s)", (_KEEP_HOURS,)
        )
        return cursor.rowcount
