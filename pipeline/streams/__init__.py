"""Streamed answers through Redis: workers write frames of 40 ms, readers get everything from the start.

The form of the entries, and why a frame can neither be lost unnoticed nor come twice, is described in
schemas/streams.py.

writer  frames of the answers that a process generates
reader  follows any number of streams over one connection
"""

from pipeline.streams.reader import Frame, StreamReader
from pipeline.streams.writer import ATTEMPTS_PER_RUN, StreamWriter

__all__ = ["ATTEMPTS_PER_RUN", "Frame", "StreamReader", "StreamWriter"]
