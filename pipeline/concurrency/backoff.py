"""Delays between retries, in one place: repeat a call, or renew a subscription, while a service is unavailable."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NoReturn, TypeVar

import structlog

from pipeline.policies import retries
from schemas.errors import BrokerUnavailable, StoreUnavailable

_log = structlog.get_logger(__name__)
_STABLE_SECONDS = 10.0
T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - nothing failed
    """The wait for a service was ended by `stop`."""


class Backoff:
    """The delay after each failure in a row: 1 s doubled up to a minute, half of it jitter.

    Args:
        growing: False keeps the first delay.
    """

    def __init__(self, *, growing: bool = True) -> None:
        self._growing = growing
        self._failures = 0

    def reset(self) -> None:
        """Begin with the first delay again, after a success."""
        self._failures = 0

    async def wait(self, stop: asyncio.Event | None = None) -> None:
        """Sleep before the next attempt; return early when `stop` is set."""
        self._failures += 1
        seconds = retries.delay(self._failures if self._growing else 1).total_seconds()
        if stop is None:
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await stop.wait()
        except TimeoutError:
            return


async def retry_while_unavailable(
    call: Callable[[], Awaitable[T]], warning: str, stop: asyncio.Event | None = None, *, growing: bool = True
) -> T:
    """Repeat a call until the database and the broker are available.

    Args:
        call: makes a new awaitable for each attempt.
        warning: logged for each failed attempt.
        stop: ends the wait for the next attempt.
        growing: whether the delays grow.

    Raises:
        Stopped: `stop` was set while a service was unavailable.
    """
    backoff = Backoff(growing=growing)
    while True:
        try:
            return await call()
        except (StoreUnavailable, BrokerUnavailable) as error:
            _log.warning(warning, reason=error.message)
            await backoff.wait(stop)
            if stop is not None and stop.is_set():
                raise Stopped from None


async def keep_subscribed(
    subscribe: Callable[[], AsyncIterator[T]], handle: Callable[[T], Awaitable[None]], warning: str
) -> NoReturn:
    """Handle the messages of a subscription, and subscribe again whenever it ends, until cancelled.

    The delay is reset by every message, and by a subscription that lasted ten seconds.

    Args:
        subscribe: makes a new subscription.
        handle: called with each message.
        warning: logged when a service is unavailable.
    """
    backoff = Backoff()
    while True:
        started = time.monotonic()
        try:
            async for message in subscribe():
                backoff.reset()
                await handle(message)
        except (StoreUnavailable, BrokerUnavailable) as error:
            _log.warning(warning, reason=error.message)
        if time.monotonic() - started > _STABLE_SECONDS:
            backoff.reset()
        await backoff.wait()
