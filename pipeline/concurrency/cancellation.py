"""Cancel a task and wait for its end."""

import asyncio
from typing import Any

_REPEAT_SECONDS = 0.2


async def cancel_and_wait(task: "asyncio.Task[Any]") -> None:
    """Cancel a task and wait until it is done; an exception that it raised is ignored.

    redis-py swallows a cancel that arrives while it connects, so the cancel is repeated.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_REPEAT_SECONDS)
    if not task.cancelled():
        task.exception()
