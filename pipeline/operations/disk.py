"""Room for the database: how much there is, and how long it lasts."""

import shutil
from pathlib import Path

from pipeline.store import Database, sizes
from schemas.errors import PipelineError

_FULL_BYTES = 1_000_000_000
_SOON_DAYS = 7.0
_ADVICE = "make room, or move YYC3_HOME: without room Postgres stops, and no job can be stored"


async def room_in(home: Path, database: Database) -> tuple[bool, str, str]:
    """Return whether there is room on the disk of a home, how much and for how long, and what to do if it ends soon."""
    free = shutil.disk_usage(home).free
    seen, days = f"{free / 1e9:.1f} GB free in {home}", None
    try:
        growth = await sizes.growth(database)
    except PipelineError:
        growth = None  # what the database lacks is said where it is looked at
    if growth is not None and growth.bytes_a_day:
        days = free / growth.bytes_a_day
        seen += f"; full in {days:,.0f} days at the rate of the last day"
    soon = days is not None and days < _SOON_DAYS
    return free > _FULL_BYTES, seen, _ADVICE if soon or free <= _FULL_BYTES else ""
