"""Times as people write and read them."""

import re
from datetime import UTC, datetime, timedelta

from schemas.errors import InvalidSetting

TIMES = "90m, 2h, 3d, or a time like 2026-11-22T03:00+08:00"
_AGO = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def instant(option: str, text: str | None) -> datetime | None:
    """Return the time that an option names: so long ago, or a time, of this place if it names none.

    Raises:
        InvalidSetting: names the option.
    """
    if text is None:
        return None
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago:
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        found = datetime.fromisoformat(text.strip())
        return (found if found.tzinfo else found.astimezone()).astimezone(UTC)
    except OverflowError:
        raise InvalidSetting(f"{option}: {text} is further away than dates reach") from None
    except ValueError:
        raise InvalidSetting(f"{option}: {text} is not like {TIMES}") from None


def moment(option: str, text: str | None) -> datetime | None:
    """Return the time to come that an option names: in so long, or a time, of this place if it names none.

    Raises:
        InvalidSetting: names the option.
    """
    found = instant(option, text)
    now = datetime.now(UTC)
    if found is not None and text is not None and _AGO.fullmatch(text.strip()):
        found = now + (now - found)
    if found is not None and found <= now:
        raise InvalidSetting(f"{option}: {text} is in the past")
    return found


def duration(option: str, text: str | None) -> float | None:
    """Return how many seconds an option names.

    Raises:
        InvalidSetting: names the option.
    """
    if text is None:
        return None
    found = _AGO.fullmatch(text.strip())
    if found is None:
        raise InvalidSetting(f"{option}: {text} is not like 90m, 2h or 3d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])}).total_seconds()


def lasting(seconds: float) -> str:
    """Return a duration for people, in its two largest units."""
    whole = int(seconds)
    for size, unit, smaller in ((86_400, "d", 3_600), (3_600, "h", 60), (60, "m", 1)):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size}{unit} {rest}{ {3_600: 'h', 60: 'm', 1: 's'}[smaller] }"
    return f"{whole}s"


def when(at: datetime) -> str:
    """Return a time for people, of this place."""
    return at.astimezone().isoformat(" ", "seconds")
