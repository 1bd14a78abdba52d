"""When a failed try is made again. Pure rules."""

import random
from datetime import timedelta

from schemas.errors import EngineError

MAX_TRIES = 5
"""Engine attempts of one job that may fail before it is a dead letter. An engine that is away or full does not count."""

MAX_CRASHES = 3
"""Workers that may be lost under a single row before it is called poison."""

_FIRST_DELAY = timedelta(seconds=1)
LONGEST_DELAY = timedelta(seconds=60)
"""No chunk waits longer for its next try."""


def tried_enough(error: EngineError, failed_tries: int) -> bool:
    """Whether this failure is the job's last; `failed_tries` counts this one if it counts."""
    return not error.retryable or failed_tries >= MAX_TRIES


def delay(round_number: int) -> timedelta:
    """How long to wait before the next try: 1 s doubled each round up to a minute, with jitter of half of it.

    Jitter keeps a fleet from knocking at a restarted engine all at once.
    """
    doublings: int = min(max(round_number, 1) - 1, 10)
    full = min(_FIRST_DELAY * (1 << doublings), LONGEST_DELAY)
    jitter: float = random.uniform(0.5, 1.0)
    return full * jitter


__all__ = ["LONGEST_DELAY", "MAX_CRASHES", "MAX_TRIES", "delay", "tried_enough"]
