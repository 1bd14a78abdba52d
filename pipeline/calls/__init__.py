"""Recorded calls to insights: one intent and one sentiment job per call, one sentiment job per customer turn.

readers   call files of every format, bad records separated
plan      the jobs of a call
analysis  submit the jobs of calls in windows, and return reports
report    the report of a call, made of outcomes
"""

from pipeline.calls.analysis import AnalysisProgress, analyze
from pipeline.calls.readers import BadLine, read_calls

__all__ = ["AnalysisProgress", "BadLine", "analyze", "read_calls"]
