"""Continuous batching without a GPU.

core           slots, the waiting queue, chunked prefill, the cost of one step; no clock
stepper        runs the core against the real clock
request_rows   the rows of one HTTP request while the engine works on them
prefix_cache   which blocks of a prompt are computed already
metrics        /metrics in the Prometheus text format
"""
