"""The budget of bytes: in order, and a piece that is larger than all of it goes alone."""

import asyncio

from pipeline.concurrency.byte_budget import ByteBudget


async def test_those_that_wait_go_on_in_their_order() -> None:
    budget, done = ByteBudget(10), list[str]()

    async def work(name: str, size: int) -> None:
        await budget.acquire(size)
        done.append(name)

    tasks = [asyncio.create_task(work(name, size)) for name, size in (("a", 6), ("b", 6), ("c", 2), ("larger", 50))]
    await asyncio.sleep(0)
    assert done == ["a"], "c is small enough, but b was first"
    budget.give_back(6)
    await asyncio.sleep(0)
    assert done == ["a", "b", "c"]
    budget.give_back(6)
    await asyncio.sleep(0)
    assert done == ["a", "b", "c"]
    budget.give_back(2)
    await asyncio.gather(*tasks)
    assert done[-1] == "larger"
    assert budget.free == 0


async def test_one_that_is_cancelled_gives_its_place_back() -> None:
    budget = ByteBudget(10)
    await budget.acquire(10)
    late = asyncio.create_task(budget.acquire(10))
    next_one = asyncio.create_task(budget.acquire(4))
    await asyncio.sleep(0)
    budget.give_back(10)
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    await asyncio.wait_for(next_one, 1)
    assert budget.free == 6


async def test_what_takes_nothing_waits_for_nothing() -> None:
    budget = ByteBudget(10)
    await budget.acquire(10)
    late = asyncio.create_task(budget.acquire(10))
    await asyncio.sleep(0)
    async with asyncio.timeout(1), budget.hold(0):
        assert budget.free == 0
        assert not late.done()
    budget.give_back(10)
    await late


async def test_one_that_gives_up_keeps_no_other_waiting() -> None:
    budget = ByteBudget(10)
    await budget.acquire(6)
    large, small = asyncio.create_task(budget.acquire(10)), asyncio.create_task(budget.acquire(4))
    await asyncio.sleep(0)
    assert not small.done(), "it came after the large one"
    large.cancel()
    await asyncio.wait_for(small, 1)
    budget.give_back(10)
    assert budget.unused
    assert budget.free == 10


async def test_one_that_is_cancelled_when_it_was_served_gives_it_back() -> None:
    budget = ByteBudget(10)
    await budget.acquire(10)
    late = asyncio.create_task(budget.acquire(10))
    await asyncio.sleep(0)
    budget.give_back(10)
    late.cancel()  # before it ran again
    await asyncio.gather(late, return_exceptions=True)
    assert budget.unused
