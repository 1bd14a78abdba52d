"""Asyncio building blocks without knowledge of jobs.

coalescer     items that arrive together share one call
byte_budget   how many bytes a process works on at once
backoff       delays between retries; repeat a call while a service is unavailable
cancellation  cancel a task and wait for its end
"""
