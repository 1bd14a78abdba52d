"""Benchmarks: `python -m bench.NAME` prints its setting and compares within one run."""
