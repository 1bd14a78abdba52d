"""Benchmarks: `python -m bench.NAME`, each prints its setting and compares within one run."""
