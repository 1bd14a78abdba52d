"""Recorded calls to insights: one intent and one sentiment job per call, one sentiment job per customer turn.

reading   call files, line by line, bad lines told apart
analysis  jobs of a call, and the report made of their outcomes
"""

from pipeline.calls.analysis import Tally, analyze
from pipeline.calls.readers.jsonl import BadLine, read_calls

__all__ = ["BadLine", "Tally", "analyze", "read_calls"]
