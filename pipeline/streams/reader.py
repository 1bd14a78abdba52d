"""Read streamed answers: any number of streams over one connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from redis import asyncio as aioredis
from redis.exceptions import RedisError

from pipeline.concurrency.backoff import Backoff
from pipeline.concurrency.cancellation import cancel_and_wait
from pipeline.redis_url import parse_redis_url
from schemas.ids import JobId
from schemas.streams import stream_name

_log = structlog.get_logger(__name__)
_BLOCK_MS = 20  # then streams that were joined meanwhile are read too
_ENTRIES_A_READ = 10_000


@dataclass(frozen=True, slots=True)
class Frame:
    """One entry of a stream; `whole` is False if an entry before it is missing."""

    event: str
    attempt: int
    text: str
    whole: bool


class _Follower:
    """The position of one reader in one stream."""

    def __init__(self) -> None:
        self.order = self.number = 0
        self.whole = True
        self.frames: asyncio.Queue[Frame | None] = asyncio.Queue()

    @property
    def position(self) -> tuple[int, int]:
        """The last entry that it has."""
        return self.order, self.number

    def add(self, order: int, number: int, event: str, attempt: int, text: str) -> None:
        """Add an entry, unless the reader has it."""
        if (order, number) <= self.position:
            return
        if order != self.order:
            self.whole = number == 0
        else:
            self.whole = self.whole and number == self.number + 1
        self.order, self.number = order, number
        self.frames.put_nowait(Frame(event, attempt, text, self.whole))


class StreamReader:
    """Follows any number of streams over one connection."""

    def __init__(self, redis_url: str) -> None:
        self._redis: aioredis.Redis = aioredis.from_url(
            parse_redis_url(redis_url).url,
            socket_connect_timeout=5,
            socket_timeout=_BLOCK_MS / 1000 + 5,
            health_check_interval=30,
            decode_responses=True,
            protocol=2,
        )
        self._followers: dict[str, list[_Follower]] = {}
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def follow(self, job_id: JobId) -> AsyncIterator["asyncio.Queue[Frame | None]"]:
        """The frames of a job from the first on, also of a stream that began long ago. Only the caller adds None."""
        key, follower = stream_name(job_id), _Follower()
        self._followers.setdefault(key, []).append(follower)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._read_while_followed())
        try:
            yield follower.frames
        finally:
            self._followers[key].remove(follower)
            if not self._followers[key]:
                del self._followers[key]

    async def close(self) -> None:
        """Close the connection."""
        if self._task is not None:
            await cancel_and_wait(self._task)
        await self._redis.aclose()

    async def _read_while_followed(self) -> None:
        backoff = Backoff()
        while self._followers:
            try:
                await self._read()
                backoff.reset()
            except (RedisError, ConnectionError, TimeoutError) as error:
                _log.warning("streams cannot be read for now", reason=type(error).__name__)
                await backoff.wait()

    async def _read(self) -> None:
        # Of two readers of one stream the one that is behind decides; the other skips the entries that it has.
        positions = {key: min(one.position for one in followers) for key, followers in self._followers.items()}
        ids = [f"{order}-{number}" for order, number in positions.values()]
        found: Any = await self._redis.execute_command(  # type: ignore[no-untyped-call]
            "XREAD", "COUNT", _ENTRIES_A_READ, "BLOCK", _BLOCK_MS, "STREAMS", *positions, *ids
        )
        for key, entries in found or ():
            # A reader that joined meanwhile needs the entries before these, and gets them with the next read.
            followers = [one for one in self._followers.get(key, ()) if one.position >= positions[key]]
            for entry_id, fields in entries:
                order, _, number = entry_id.partition("-")
                for follower in followers:
                    follower.add(int(order), int(number), fields["event"], int(fields["attempt"]), fields["text"])
