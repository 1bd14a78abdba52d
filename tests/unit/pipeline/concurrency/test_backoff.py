"""Delays between retries: they grow, start again after a success, and end when a process stops."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from pipeline.concurrency.backoff import Backoff, Stopped, keep_subscribed, retry_while_unavailable
from pipeline.policies import retries
from schemas.errors import BrokerUnavailable, StoreUnavailable, UnstorableValue

HOUR = timedelta(hours=1)
DEADLINE_SECONDS = 10


class Delays:
    """Stands in for `retries.delay`: records each round, and returns the same short or long delay."""

    def __init__(self) -> None:
        self.rounds: list[int] = []
        self.length = timedelta(0)
        self.started = asyncio.Event()

    def delay(self, round_number: int) -> timedelta:
        self.rounds.append(round_number)
        self.started.set()
        return self.length


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> Delays:
    made = Delays()
    monkeypatch.setattr(retries, "delay", made.delay)
    return made


def failing(*errors: Exception) -> Callable[[], Awaitable[str]]:
    """Return a call that raises these errors one after another, and then returns a value."""
    left = list(errors)

    async def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


async def test_delays_grow_with_each_failure_and_start_again_after_a_reset(delays: Delays) -> None:
    backoff = Backoff()
    for _ in range(3):
        await backoff.wait()
    backoff.reset()
    await backoff.wait()
    assert delays.rounds == [1, 2, 3, 1]


async def test_delays_that_do_not_grow_keep_the_first_one(delays: Delays) -> None:
    backoff = Backoff(growing=False)
    for _ in range(3):
        await backoff.wait()
    assert delays.rounds == [1, 1, 1]


async def test_a_wait_lasts_the_whole_delay(monkeypatch: pytest.MonkeyPatch, delays: Delays) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    delays.length = HOUR
    monkeypatch.setattr("pipeline.concurrency.backoff.asyncio.sleep", sleep)
    await Backoff().wait()
    assert slept == [3_600.0]


async def test_a_wait_returns_when_stop_is_set(delays: Delays) -> None:
    delays.length, stop = HOUR, asyncio.Event()
    waiting = asyncio.create_task(Backoff().wait(stop))
    await asyncio.wait_for(delays.started.wait(), DEADLINE_SECONDS)
    assert not waiting.done()
    stop.set()
    await asyncio.wait_for(waiting, DEADLINE_SECONDS)


async def test_a_wait_that_is_not_stopped_ends_after_its_delay(delays: Delays) -> None:
    stop = asyncio.Event()
    await asyncio.wait_for(Backoff().wait(stop), DEADLINE_SECONDS)
    assert not stop.is_set()
    assert delays.rounds == [1]


async def test_a_call_is_repeated_until_its_service_is_available(delays: Delays) -> None:
    call = failing(StoreUnavailable("no database"), BrokerUnavailable("no broker"), StoreUnavailable("no database"))
    with capture_logs() as logs:
        assert await retry_while_unavailable(call, "waiting for the service") == "done"
    assert delays.rounds == [1, 2, 3]
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        ("waiting for the service", "no database"),
        ("waiting for the service", "no broker"),
        ("waiting for the service", "no database"),
    ]


async def test_a_call_may_be_repeated_with_equal_delays(delays: Delays) -> None:
    call = failing(StoreUnavailable("a"), StoreUnavailable("b"))
    assert await retry_while_unavailable(call, "waiting", growing=False) == "done"
    assert delays.rounds == [1, 1]


async def test_any_other_error_is_raised_at_once(delays: Delays) -> None:
    with pytest.raises(UnstorableValue):
        await retry_while_unavailable(failing(UnstorableValue("x")), "waiting")
    assert delays.rounds == []


async def test_a_call_to_an_unavailable_service_is_not_repeated_after_stop(delays: Delays) -> None:
    delays.length, stop, calls = HOUR, asyncio.Event(), 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        raise StoreUnavailable("no database")

    waiting = asyncio.create_task(retry_while_unavailable(call, "waiting", stop))
    await asyncio.wait_for(delays.started.wait(), DEADLINE_SECONDS)  # it waits for an hour from here on
    stop.set()
    with pytest.raises(Stopped):
        await asyncio.wait_for(waiting, DEADLINE_SECONDS)
    assert calls == 1


async def test_a_call_that_succeeds_is_not_affected_by_stop(delays: Delays) -> None:
    stop = asyncio.Event()
    stop.set()
    assert await retry_while_unavailable(failing(), "waiting", stop) == "done"
    assert delays.rounds == []


class Subscriptions:
    """Subscriptions that last some seconds of an injected clock each; the last one does not end.

    An exception instead of a duration is raised at once.
    """

    def __init__(self, *lives: float | Exception) -> None:
        self.lives = list(lives)
        self.messages: list[str] = []
        self.handled: list[str] = []
        self.now = 0.0
        self.subscribed = asyncio.Event()

    def monotonic(self) -> float:
        return self.now

    async def subscribe(self) -> AsyncIterator[str]:
        if not self.lives:
            self.subscribed.set()
            await asyncio.Event().wait()
        life = self.lives.pop(0)
        if isinstance(life, Exception):
            raise life
        self.now += life
        for message in self.messages:
            yield message

    async def handle(self, message: str) -> None:
        self.handled.append(message)


async def rounds_until_the_last_one(
    subscriptions: Subscriptions, monkeypatch: pytest.MonkeyPatch, delays: Delays
) -> list[int]:
    monkeypatch.setattr("pipeline.concurrency.backoff.time", SimpleNamespace(monotonic=subscriptions.monotonic))
    task = asyncio.create_task(
        keep_subscribed(subscriptions.subscribe, subscriptions.handle, "notifications unavailable")
    )
    await asyncio.wait_for(subscriptions.subscribed.wait(), DEADLINE_SECONDS)
    assert not task.done()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    return delays.rounds


async def test_a_subscription_is_renewed_whenever_it_ends(monkeypatch: pytest.MonkeyPatch, delays: Delays) -> None:
    subscriptions = Subscriptions(1.0, BrokerUnavailable("no broker"), StoreUnavailable("no database"), 2.0)
    with capture_logs() as logs:
        assert await rounds_until_the_last_one(subscriptions, monkeypatch, delays) == [1, 2, 3, 4]
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        ("notifications unavailable", "no broker"),
        ("notifications unavailable", "no database"),
    ]


async def test_a_subscription_that_lasted_ten_seconds_resets_the_delay(
    monkeypatch: pytest.MonkeyPatch, delays: Delays
) -> None:
    subscriptions = Subscriptions(1.0, 9.0, 11.0, 10.0, 60.0)
    assert await rounds_until_the_last_one(subscriptions, monkeypatch, delays) == [1, 2, 1, 2, 1]


async def test_every_message_resets_the_delay(monkeypatch: pytest.MonkeyPatch, delays: Delays) -> None:
    subscriptions = Subscriptions(1.0, BrokerUnavailable("no broker"), 2.0, 3.0)
    subscriptions.messages = ["settled"]
    assert await rounds_until_the_last_one(subscriptions, monkeypatch, delays) == [1, 2, 1, 1]
    assert subscriptions.handled == ["settled"] * 3


async def test_an_unexpected_error_of_a_handler_is_raised(delays: Delays) -> None:
    subscriptions = Subscriptions(1.0)
    subscriptions.messages = ["settled"]

    async def handle(_message: str) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        await keep_subscribed(subscriptions.subscribe, handle, "notifications unavailable")
    assert delays.rounds == []
