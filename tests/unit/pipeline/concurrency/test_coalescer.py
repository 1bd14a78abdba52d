"""Items that arrive while a flush is in flight share the next one."""

import asyncio

from pipeline.concurrency.coalescer import Coalescer


async def test_items_that_come_during_a_flush_share_the_next_one() -> None:
    flushes: list[list[int]] = []
    began, release = asyncio.Event(), asyncio.Event()

    async def flush(items: list[int]) -> list[int | BaseException]:
        flushes.append(items)
        began.set()
        if len(flushes) == 1:
            await release.wait()
        return [item * 10 if item != 3 else ValueError("three") for item in items]

    coalesce: Coalescer[int, int] = Coalescer(flush)
    first = asyncio.create_task(coalesce(0))
    await began.wait()
    later = [asyncio.create_task(coalesce(i)) for i in range(1, 6)]
    await asyncio.sleep(0)
    release.set()
    replies = await asyncio.gather(first, *later, return_exceptions=True)
    assert flushes == [[0], [1, 2, 3, 4, 5]]
    assert [reply for reply in replies if isinstance(reply, int)] == [0, 10, 20, 40, 50]
    assert isinstance(replies[3], ValueError)


async def test_a_failed_flush_reaches_every_caller_and_the_next_one_works() -> None:
    broken = True

    async def flush(items: list[int]) -> list[int]:
        if broken:
            raise OSError("away")
        return items

    coalesce: Coalescer[int, int] = Coalescer(flush)
    replies = await asyncio.gather(coalesce(1), coalesce(2), return_exceptions=True)
    assert all(isinstance(value, OSError) for value in replies)
    broken = False
    assert await coalesce(3) == 3


async def test_a_flush_has_at_most_the_largest_number_of_items() -> None:
    sizes: list[int] = []

    async def flush(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return items

    coalesce: Coalescer[int, int] = Coalescer(flush, largest=10)
    await asyncio.gather(*[coalesce(i) for i in range(25)])
    assert sizes == [10, 10, 5]


async def test_a_flush_weighs_at_most_the_heaviest_weight_or_has_one_item() -> None:
    flushes: list[list[int]] = []

    async def flush(items: list[int]) -> list[int]:
        flushes.append(items)
        return items

    coalesce: Coalescer[int, int] = Coalescer(flush, weight=lambda item: item, heaviest=10)
    await asyncio.gather(*[coalesce(weight) for weight in (4, 6, 1, 99, 5)])
    assert flushes == [[4, 6], [1], [99], [5]]


async def test_the_item_of_a_cancelled_caller_stays_in_its_flush() -> None:
    flushes: list[list[int]] = []
    started, release = asyncio.Event(), asyncio.Event()

    async def flush(items: list[int]) -> list[int]:
        flushes.append(items)
        started.set()
        await release.wait()
        return items

    coalesce: Coalescer[int, int] = Coalescer(flush)
    cancelled, other = asyncio.create_task(coalesce(1)), asyncio.create_task(coalesce(2))
    await started.wait()
    cancelled.cancel()
    release.set()
    assert await other == 2
    assert flushes == [[1, 2]]
    assert cancelled.cancelled()
