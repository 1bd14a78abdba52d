"""Call files of every format become the same `Call`; nothing after a reader knows the format.

registry     the readers, and which one reads a file
reader       what a reader consists of
jsonl        JSON Lines, one call a line
recognition  what a file is that no reader reads
"""

from pipeline.calls.readers.reader import BadLine, Reader
from pipeline.calls.readers.registry import read_calls, register

__all__ = ["BadLine", "Reader", "read_calls", "register"]
