"""Streamed answers through Redis: workers write frames of 25 ms, readers get everything from the start.

One command carries the frames of all answers that a process writes at that moment. What the entries look like, and why
a frame can neither be lost unnoticed nor come twice, stands in schemas/streams.py.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis import asyncio as aioredis
from redis.exceptions import RedisError

from pipeline import retries
from schemas.ids import JobId
from schemas.streams import stream_name

_log = structlog.get_logger(__name__)
_FRAME_SECONDS = 0.025
_LIFETIME_MS = 600_000
_END_ORDER = 2**53 - 1  # larger than any try's: after the end Redis takes nothing more
_LOOK_MS = 20  # a reader's next look at streams it began to follow meanwhile
_ENTRIES_A_LOOK = 10_000
TRIES_OF_A_RUN = 100
"""Orders that one run of a chunk may use; see `StreamWriter.begin`."""

# Once for each frame: what try it belongs to follows from the entry before it. A frame that is there already was written
# by a command whose reply was lost; one that Redis refuses is of a try that others have overtaken.
_WRITE = """
local refused = {}
for i, key in ipairs(KEYS) do
    local order, number, text = ARGV[3 * i], ARGV[3 * i + 1], ARGV[3 * i + 2]
    local id, event, try = order .. '-' .. number, 'text', 1
    local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
    local there = false
    if last then
        local last_order, last_number = string.match(last[1], '(%d+)-(%d+)')
        there = last_order == order and tonumber(last_number) >= tonumber(number)
        try = tonumber(last[2][4])
        if number == '0' then event, try = 'restart', try + 1 end
    end
    if order == ARGV[2] then event, try = 'end', last and tonumber(last[2][4]) or 1 end
    if not there then
        local done = redis.pcall('XADD', key, id, 'event', event, 'try', try, 'text', text)
        if type(done) == 'table' and done.err then refused[#refused + 1] = i end
    end
    redis.call('PEXPIRE', key, ARGV[1])
end
return refused
"""


@dataclass(slots=True)
class _Open:
    """One try of one job that is being written."""

    job_id: JobId
    order: int
    frames: int = 0
    pieces: list[str] = field(default_factory=list)
    unsure: list[tuple[int, str]] = field(default_factory=list)  # number and text of frames that may have been written
    overtaken: bool = False

    def seal(self) -> None:
        """What was said since the last frame becomes one; sent again it stays the same."""
        if self.pieces:
            self.unsure.append((self.frames, "".join(self.pieces)))
            self.frames += 1
            self.pieces.clear()


class StreamWriter:
    """Frames of the answers that a process writes."""

    def __init__(self, redis_url: str) -> None:
        self._redis: aioredis.Redis = aioredis.from_url(redis_url, socket_connect_timeout=5, health_check_interval=30)
        self._script = self._redis.register_script(_WRITE)
        self._pending: dict[JobId, _Open] = {}
        self._ended: dict[JobId, None] = {}
        self._something = asyncio.Event()
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self, job_id: JobId, order: int) -> Callable[[str], None]:
        """A new try of a job; call what is returned with each piece of text.

        `order` is larger than that of every try before, whichever process made it.
        """
        opened = _Open(job_id, order)

        def write(text: str) -> None:
            if opened.overtaken:
                return
            first = not opened.pieces and not opened.frames
            opened.pieces.append(text)
            self._pending[job_id] = opened
            self._wake(hurry=first)

        return write

    def end(self, job_ids: Iterable[JobId]) -> None:
        """These streamed jobs are settled; readers are told after what was written before."""
        ended = dict.fromkeys(job_ids)
        if ended:
            self._ended |= ended
            self._wake(hurry=True)

    async def close(self) -> None:
        """Write what is left, and close."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            if self._pending or self._ended:
                await self._flush()
        await self._redis.aclose()

    def _wake(self, *, hurry: bool) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._write_forever())
        self._something.set()
        if hurry:
            self._hurry.set()

    async def _write_forever(self) -> None:
        """A frame each 25 ms while there is text; the first of an answer and the end of one go at once."""
        failed = 0
        while True:
            await self._something.wait()
            try:
                async with asyncio.timeout(_FRAME_SECONDS):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._something.clear()
            self._hurry.clear()
            if await self._flush():
                failed = 0
            else:
                failed += 1
                await asyncio.sleep(retries.delay(failed).total_seconds())
                self._something.set()

    async def _flush(self) -> bool:
        """Write all that is pending in one command; what could not be written is kept for the next."""
        pending, self._pending = self._pending, {}
        ended, self._ended = self._ended, {}
        for entry in pending.values():
            entry.seal()
        frames = [(entry, number, text) for entry in pending.values() for number, text in entry.unsure]
        keys = [stream_name(entry.job_id) for entry, _, _ in frames] + [stream_name(job_id) for job_id in ended]
        arguments: list[Any] = [_LIFETIME_MS, _END_ORDER]
        for entry, number, text in frames:
            arguments += (entry.order, number, text)
        arguments += (_END_ORDER, 0, "") * len(ended)
        try:
            refused = await self._script(keys=keys, args=arguments)
        except (RedisError, ConnectionError, TimeoutError) as error:
            _log.warning("streams wait for Redis", reason=type(error).__name__, streams=len(pending))
            # Of jobs that are settled nothing is kept: their readers find the stored result.
            kept = {job_id: entry for job_id, entry in pending.items() if job_id not in ended}
            self._pending = kept | self._pending
            return False
        for entry in pending.values():
            entry.unsure.clear()
        for place in refused:
            if place <= len(frames):
                frames[place - 1][0].overtaken = True
        return True


@dataclass(frozen=True, slots=True)
class Frame:
    """One entry of a stream; `whole` is False where something before it is missing."""

    event: str
    try_number: int
    text: str
    whole: bool


class _Follower:
    """Somebody's place in one stream."""

    def __init__(self) -> None:
        self.order = self.number = 0
        self.whole = True
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()

    def take(self, order: int, number: int, event: str, try_number: int, text: str) -> None:
        """An entry; those that were seen are passed over."""
        if (order, number) <= (self.order, self.number) and self.order:
            return
        if order != self.order:
            self.whole = number == 0
        else:
            self.whole = self.whole and number == self.number + 1
        self.order, self.number = order, number
        self.frames.put_nowait(Frame(event, try_number, text, self.whole))


class StreamReader:
    """Follows any number of streams over one connection."""

    def __init__(self, redis_url: str) -> None:
        self._redis: aioredis.Redis = aioredis.from_url(
            redis_url, socket_connect_timeout=5, health_check_interval=30, decode_responses=True, protocol=2
        )
        self._followers: dict[str, list[_Follower]] = {}
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def follow(self, job_id: JobId) -> AsyncIterator["asyncio.Queue[Frame]"]:
        """The frames of a job from the first on, also of one that began long ago."""
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
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._redis.aclose()

    async def _read_while_followed(self) -> None:
        failed = 0
        while self._followers:
            try:
                await self._read()
                failed = 0
            except (RedisError, ConnectionError, TimeoutError) as error:
                failed += 1
                _log.warning("streams cannot be read for now", reason=type(error).__name__)
                await asyncio.sleep(retries.delay(failed).total_seconds())

    async def _read(self) -> None:
        keys = list(self._followers)
        # Of two readers of one stream the one that is behind decides; the other passes over what it has.
        places = [min((f.order, f.number) for f in self._followers[key]) for key in keys]
        ids = [f"{order}-{number}" for order, number in places]
        found: Any = await self._redis.execute_command(  # type: ignore[no-untyped-call]
            "XREAD", "COUNT", _ENTRIES_A_LOOK, "BLOCK", _LOOK_MS, "STREAMS", *keys, *ids
        )
        for key, entries in found or ():
            followers = self._followers.get(key, ())
            for entry_id, fields in entries:
                order, _, number = entry_id.partition("-")
                for follower in followers:
                    follower.take(int(order), int(number), fields["event"], int(fields["try"]), fields["text"])


__all__ = ["TRIES_OF_A_RUN", "Frame", "StreamReader", "StreamWriter"]
