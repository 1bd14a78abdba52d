"""Notifications through Redis: settled and cancelled jobs, interactive demand. A lost one only causes a delay."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import structlog
from redis import asyncio as aioredis

from pipeline.broker.errors import translate_errors
from pipeline.redis_url import parse_redis_url
from schemas.errors import BrokerUnavailable
from schemas.ids import JobId

_log = structlog.get_logger(__name__)
_FOREIGN = "a message on a channel of this system is not one of its notifications"

CANCELLED = "yyc3.cancelled"
"""The channel of cancelled jobs, for every worker."""

INTERACTIVE_DEMAND = "yyc3.interactive"
"""The channel of models that serve interactive jobs, for bulk workers."""


class Notifier:
    """Publishes and receives notifications. A lost one delays its subscriber until it looks the next time."""

    def __init__(self, redis_url: str) -> None:
        address = parse_redis_url(redis_url)
        keepalive = {} if address.socket else {"socket_keepalive": True}
        # A notification is worth a second; a subscription is silent for as long as nothing happens.
        self._redis: aioredis.Redis = aioredis.from_url(address.url, socket_connect_timeout=1, socket_timeout=1)
        self._subscriptions: aioredis.Redis = aioredis.from_url(
            address.url, socket_connect_timeout=5, health_check_interval=30, **keepalive
        )

    async def notify(self, channel: str, job_ids: Sequence[JobId]) -> None:
        """Notify the subscribers of a channel of these jobs.

        Raises:
            BrokerUnavailable: Redis cannot be reached.
        """
        with translate_errors("Redis"):
            await self._redis.publish(channel, orjson.dumps(job_ids))

    async def subscribe(self, channel: str, ready: asyncio.Event) -> AsyncIterator[list[JobId]]:
        """Yield job ids as they are published; `ready` is set when no later notification is missed."""
        async for payload in self._messages(channel, ready):
            try:
                yield [JobId(int(job_id)) for job_id in payload]
            except (TypeError, ValueError):
                _log.warning(_FOREIGN, channel=channel)

    async def announce_interactive(self, model: str) -> None:
        """Announce that a model serves an interactive job now."""
        with translate_errors("Redis"):
            await self._redis.publish(INTERACTIVE_DEMAND, orjson.dumps([model]))

    async def subscribe_interactive(self) -> AsyncIterator[str]:
        """Yield the names of models as they are announced."""
        async for payload in self._messages(INTERACTIVE_DEMAND, asyncio.Event()):
            if isinstance(payload, list) and payload and isinstance(payload[0], str):
                yield payload[0]
            else:
                _log.warning(_FOREIGN, channel=INTERACTIVE_DEMAND)

    async def _messages(self, channel: str, ready: asyncio.Event) -> AsyncIterator[Any]:
        with translate_errors("Redis"):
            async with self._subscriptions.pubsub() as subscription:
                await subscription.subscribe(channel)
                async for message in subscription.listen():
                    if message["type"] == "subscribe":
                        ready.set()
                    elif message["type"] == "message":
                        try:
                            yield orjson.loads(message["data"])
                        except orjson.JSONDecodeError:
                            _log.warning(_FOREIGN, channel=channel)

    async def ping(self) -> None:
        """Raise BrokerUnavailable if Redis does not answer, or takes no messages because it is a replica."""
        with translate_errors("Redis"):
            await self._redis.ping()
            role: Any = await self._redis.execute_command("ROLE")  # type: ignore[no-untyped-call]
        if role[0] == b"slave":
            raise BrokerUnavailable(
                "Redis is a replica and takes no messages; REDIS_URL has to name the primary server"
            )

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
        await self._subscriptions.aclose()
