"""Exit codes of every command. Nothing else is imported here: the edge needs them before the commands are."""

from enum import IntEnum


class Exit(IntEnum):
    """How a command ended."""

    DONE = 0
    SOME_FAILED = 1
    BAD_INPUT = 2
    UNREACHABLE = 3  # or it accepts nothing more for now
    BUG = 4
    STOPPED = 130
