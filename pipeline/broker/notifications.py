"""Whispers through Redis: which jobs are settled or were cancelled, and who chats. Losing one costs a moment."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import structlog
from redis import asyncio as aioredis

from pipeline.broker.errors import mapped
from schemas.ids import JobId

_log = structlog.get_logger(__name__)
_NOT_OURS = "something that is not ours was said on a channel of ours"

CANCELLED = "yyc3.cancelled"
"""The channel on which every worker hears of cancelled jobs."""

CHAT = "yyc3.chat"
"""The channel on which bulk workers hear of models that somebody waits for."""


class Whispers:
    """Says which jobs are settled, or were cancelled, by id. Losing one costs a listener at most its next look."""

    def __init__(self, redis_url: str) -> None:
        self._redis: aioredis.Redis = aioredis.from_url(redis_url, socket_connect_timeout=5, health_check_interval=30)

    async def say(self, channel: str, job_ids: Sequence[JobId]) -> None:
        """Tell those who listen to a channel: a producer to its own, workers to CANCELLED."""
        with mapped("Redis"):
            await self._redis.publish(channel, orjson.dumps(job_ids))

    async def listen(self, channel: str, ready: asyncio.Event) -> AsyncIterator[list[JobId]]:
        """Ids as they are said; `ready` is set when nothing said from now on is missed."""
        async for said in self._heard(channel, ready):
            try:
                yield [JobId(int(i)) for i in said]
            except (TypeError, ValueError):
                _log.warning(_NOT_OURS, channel=channel)

    async def announce_chat(self, model: str) -> None:
        """Somebody waits for an answer of this model."""
        with mapped("Redis"):
            await self._redis.publish(CHAT, orjson.dumps([model]))

    async def hear_of_chat(self) -> AsyncIterator[str]:
        """Models that somebody waits for, as they are announced."""
        async for said in self._heard(CHAT, asyncio.Event()):
            if isinstance(said, list) and said and isinstance(said[0], str):
                yield said[0]
            else:
                _log.warning(_NOT_OURS, channel=CHAT)

    async def _heard(self, channel: str, ready: asyncio.Event) -> AsyncIterator[Any]:
        with mapped("Redis"):
            async with self._redis.pubsub() as subscription:
                await subscription.subscribe(channel)
                async for message in subscription.listen():
                    if message["type"] == "subscribe":
                        ready.set()
                    elif message["type"] == "message":
                        try:
                            yield orjson.loads(message["data"])
                        except orjson.JSONDecodeError:
                            _log.warning(_NOT_OURS, channel=channel)

    async def ping(self) -> None:
        """Raises BrokerUnavailable where Redis does not answer."""
        with mapped("Redis"):
            await self._redis.ping()

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


__all__ = ["CANCELLED", "CHAT", "Whispers"]
