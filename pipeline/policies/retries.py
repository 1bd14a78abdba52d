"""When a failed attempt is repeated, and after how long. Pure."""

import random
from datetime import timedelta

from schemas.errors import EngineError

MAX_ATTEMPTS = 5
"""Failed engine attempts after which a job is a dead letter. An unavailable or overloaded engine does not count."""

MAX_CRASHES = 3
"""Workers that may be lost under a single row before it is failed as poison."""

_FIRST_DELAY = timedelta(seconds=1)
LONGEST_DELAY = timedelta(seconds=60)
"""The longest time that a chunk waits for its next round."""


def is_final(error: EngineError, failed_attempts: int) -> bool:
    """Whether a failure makes the job a dead letter; `failed_attempts` includes this one if it counts."""
    return not error.retryable or failed_attempts >= MAX_ATTEMPTS


def delay(round_number: int) -> timedelta:
    """Return the delay before a retry: 1 s, doubled each round up to a minute, with jitter of half of it.

    Jitter keeps a fleet from connecting to a restarted engine all at once.
    """
    doublings: int = min(max(round_number, 1) - 1, 10)
    full = min(_FIRST_DELAY * (1 << doublings), LONGEST_DELAY)
    jitter: float = random.uniform(0.5, 1.0)
    return full * jitter
