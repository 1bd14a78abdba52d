"""Room at endpoints is handed out in order and never beyond the limit."""

import asyncio
from datetime import timedelta

import pytest

from pipeline.engine import EngineClient, EnginePool
from pipeline.kinds.classification import fixed_form
from pipeline.models import LabelForm, ModelEntry


def pool_of(*urls: str, limit: int) -> EnginePool:
    entry = ModelEntry(name="m", kinds=("chat",), port=1, endpoints=urls)
    return EnginePool(entry, EngineClient(timedelta(seconds=1)), limit)


async def test_room_is_given_in_order_and_a_large_request_is_not_overtaken() -> None:
    pool = pool_of("http://a", limit=10)
    order: list[int] = []

    async def take(number: int, rows: int, hold: asyncio.Event) -> None:
        async with pool.use(rows):
            order.append(number)
            await hold.wait()

    first, rest = asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(take(0, 8, first))]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(take(i, rows, rest)) for i, rows in ((1, 9), (2, 1), (3, 1))]
    await asyncio.sleep(0.01)
    assert order == [0], "one row would fit, but stands behind nine"
    first.set()
    await asyncio.sleep(0.01)
    assert order == [0, 1, 2]
    rest.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3]


async def test_two_endpoints_share_and_an_avoided_one_is_last() -> None:
    pool = pool_of("http://a", "http://b", limit=10)
    async with pool.use(4) as one, pool.use(4) as two, pool.use(1, [one.url]) as three:
        assert {one.url, two.url} == {"http://a", "http://b"}
        assert three.url == two.url


async def test_a_request_larger_than_the_limit_gets_in_alone() -> None:
    pool = pool_of("http://a", limit=10)
    async with pool.use(50) as endpoint:
        assert endpoint.in_flight == 50


async def test_somebody_who_leaves_the_line_keeps_nobody_waiting_and_takes_no_room() -> None:
    pool = pool_of("http://a", limit=10)
    entered = asyncio.Event()

    async def take(rows: int) -> None:
        async with pool.use(rows):
            entered.set()

    async with pool.use(6) as endpoint:
        large = asyncio.create_task(take(9))
        await asyncio.sleep(0)
        small = asyncio.create_task(take(2))
        await asyncio.sleep(0.01)
        assert not entered.is_set()
        large.cancel()
        async with asyncio.timeout(1):
            await entered.wait()
        await small
        with pytest.raises(asyncio.CancelledError):
            await large
    assert endpoint.in_flight == 0


def test_a_fixed_form_gives_way_to_sets_it_cannot_hold() -> None:
    assert fixed_form(LabelForm.CODE, ["a"] * 20) is LabelForm.CODE
    assert fixed_form(LabelForm.CODE, ["a"] * 30) is LabelForm.WHOLE_WORD
