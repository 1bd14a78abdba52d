"""Cancelling a task, also one that swallows a cancel."""

import asyncio

import pytest

from pipeline.concurrency import cancellation
from pipeline.concurrency.cancellation import cancel_and_wait


async def test_a_task_that_swallows_a_cancel_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "_REPEAT_SECONDS", 0)
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed == 2:
                    raise
                swallowed += 1

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(cancel_and_wait(task), 10)
    assert task.cancelled()
    assert swallowed == 2


async def test_the_exception_of_a_task_that_ended_is_ignored() -> None:
    async def fail() -> None:
        raise OSError("broken")

    task = asyncio.create_task(fail())
    await asyncio.wait({task})
    await cancel_and_wait(task)
    assert task.done()
