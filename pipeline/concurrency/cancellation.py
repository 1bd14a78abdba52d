"""Ending a task of ours for certain."""

import asyncio
from typing import Any

_PATIENCE_SECONDS = 0.2


async def ended(task: "asyncio.Task[Any]") -> None:
    """Cancel a task and wait until it is over; what it raised is its own affair.

    redis-py swallows a cancel that comes while it connects, so one is not always enough.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_PATIENCE_SECONDS)
    if not task.cancelled():
        task.exception()


__all__ = ["ended"]
