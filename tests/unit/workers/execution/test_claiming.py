"""What a process claims while it has many bytes in memory."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

import pytest

from pipeline.store import Database, claims
from pipeline.store.claims import SMALL_BYTES, Claim, Room
from schemas.doorbells import Doorbell, Lane
from schemas.ids import JobId
from workers.execution import claiming
from workers.execution.claiming import Claimer

MIB = 1024 * 1024


class Store:
    """Queued chunks by model, as large as they are; what a claim takes is gone."""

    def __init__(self, **sizes: list[int]) -> None:
        self.sizes = sizes
        self.asked = 0

    async def best(self, _: Any, model: str, lane: Lane, run_ids: Sequence[UUID], *, room: Room, **__: Any) -> Any:
        await asyncio.sleep(0)
        self.asked += 1
        found: dict[UUID, Claim] = {}
        total = 0
        for run_id in run_ids:
            for size in self.sizes.get(model, []):
                if size <= SMALL_BYTES or total + size <= room.bytes or (not found and room.alone):
                    self.sizes[model].remove(size)
                    total += size
                    found[run_id] = Claim(run_id, JobId(1), 1, 1, model, lane, None, 0, 0, None, (), size)
                    break
        return found

    async def waiting(self, _: Any, model: str, *__: Any) -> int | None:
        return next(iter(self.sizes.get(model, [])), None)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store()
    monkeypatch.setattr(claims, "claim_best", made.best)
    monkeypatch.setattr(claims, "waiting_bytes", made.waiting)
    return made


def claimer() -> Claimer:
    return Claimer(cast("Database", None), "w", timedelta(seconds=20), asyncio.Event())


def doorbell(model: str) -> Doorbell:
    return Doorbell(model=model, lane=Lane.BULK)


async def test_models_that_claim_at_once_have_no_more_than_the_budget_together(store: Store) -> None:
    store.sizes = {name: [30 * MIB] for name in "abc"}
    one = claimer()
    asked = [asyncio.create_task(one.claim(doorbell(name))) for name in "abc"]
    done, _ = await asyncio.wait(asked, timeout=0.1)
    assert len([task for task in done if task.result()]) == 1
    for _ in range(2):
        finished = next(task for task in asked if task.done() and task.result())
        asked.remove(finished)
        held = finished.result()
        assert held is not None
        one.release(held)
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=1)
    assert store.sizes == {"a": [], "b": [], "c": []}


async def test_a_small_chunk_waits_for_no_large_one_and_one_doorbell_waits_for_room(store: Store) -> None:
    store.sizes = {"vision": [47 * MIB, 30 * MIB, 30 * MIB], "chat": [1_000]}
    one = claimer()
    first = await one.claim(doorbell("vision"))
    assert first is not None
    waiting = asyncio.create_task(one.claim(doorbell("vision")))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(1):
        assert await one.claim(doorbell("vision")) is None, "recovery publishes this doorbell again"
        small = await one.claim(doorbell("chat"))
        assert small is not None
        assert await one.claim(doorbell("chat")) is None, "there is nothing to wait for"
    assert not waiting.done()
    one.release(first)
    assert (await asyncio.wait_for(waiting, 1)) is not None


async def test_a_large_chunk_is_claimed_in_the_end_while_smaller_ones_come(store: Store) -> None:
    store.sizes = {"vision": [40 * MIB], "other": [5 * MIB] * 100}
    one = claimer()
    held = [await one.claim(doorbell("other")) for _ in range(8)]
    large = asyncio.create_task(one.claim(doorbell("vision")))
    await asyncio.sleep(0.01)
    more = asyncio.create_task(one.claim(doorbell("other")))
    await asyncio.sleep(0.01)
    assert not large.done()
    for claim in held:
        assert claim is not None
        one.release(claim)
    assert (await asyncio.wait_for(large, 1)) is not None
    more.cancel()


async def test_a_wait_for_room_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claiming, "_WAIT_FOR_ROOM_SECONDS", 0.05)
    store.sizes = {"vision": [47 * MIB, 30 * MIB]}
    one = claimer()
    assert await one.claim(doorbell("vision"))
    assert await asyncio.wait_for(one.claim(doorbell("vision")), 1) is None
    store.sizes["vision"].insert(0, 1_000)
    assert await asyncio.wait_for(one.claim(doorbell("vision")), 1), "nothing of the wait is left"
