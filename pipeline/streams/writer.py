"""Streamed answers through Redis: workers write frames of 40 ms, readers get everything from the start.

One command carries the frames of all answers that a process writes at that moment. What the entries look like, and why
a frame can neither be lost unnoticed nor come twice, stands in schemas/streams.py.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis import asyncio as aioredis
from redis.exceptions import RedisError

from pipeline.concurrency.cancellation import ended
from pipeline.policies import retries
from schemas.ids import JobId
from schemas.streams import stream_name

_log = structlog.get_logger(__name__)
_FRAME_SECONDS = 0.04
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
    local found = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)
    local last = found[1]
    local there = false
    if last then
        local last_order, last_number = string.match(last[1], '(%d+)-(%d+)')
        there = last_order == order and tonumber(last_number) >= tonumber(number)
        try = tonumber(last[2][4])
        if number == '0' then event, try = 'restart', try + 1 end
    end
    if order == ARGV[2] then event, try = 'end', last and tonumber(last[2][4]) or 1 end
    if found.err then
        refused[#refused + 1] = i
    elseif not there then
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
        self._closing = asyncio.Event()
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
        """Write what is left, if Redis takes it, and close."""
        if self._task is not None:
            self._closing.set()
            self._wake(hurry=True)
            await asyncio.wait({self._task})
            await self._flush(all_of_it=True)  # what came while the last one was under way
        await self._redis.aclose()

    def _wake(self, *, hurry: bool) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._write_forever())
        self._something.set()
        if hurry:
            self._hurry.set()

    async def _write_forever(self) -> None:
        """All that was said, each 40 ms; an answer that begins or ends goes at once, without the others' half frames."""
        due, failed = 0.0, 0
        while not self._closing.is_set():
            await self._something.wait()
            all_of_it = False
            try:
                async with asyncio.timeout_at(due):
                    await self._hurry.wait()
            except TimeoutError:
                all_of_it = True
                due = asyncio.get_running_loop().time() + _FRAME_SECONDS
            if await self._flush(all_of_it=all_of_it or self._closing.is_set()):
                failed = 0
                continue
            failed += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(retries.delay(failed).total_seconds()):
                    await self._closing.wait()

    async def _flush(self, *, all_of_it: bool) -> bool:
        """Write what is pending in one command; what could not be written is kept for the next."""
        self._hurry.clear()
        taken = {
            job_id: entry
            for job_id, entry in self._pending.items()
            if all_of_it or not entry.frames or job_id in self._ended
        }
        ended, self._ended = self._ended, {}
        for job_id, entry in taken.items():
            del self._pending[job_id]
            entry.seal()
        if not self._pending:
            self._something.clear()
        frames = [(entry, number, text) for entry in taken.values() for number, text in entry.unsure]
        keys = [stream_name(entry.job_id) for entry, _, _ in frames] + [stream_name(job_id) for job_id in ended]
        if not keys:
            return True
        arguments: list[Any] = [_LIFETIME_MS, _END_ORDER]
        for entry, number, text in frames:
            arguments += (entry.order, number, text)
        arguments += (_END_ORDER, 0, "") * len(ended)
        try:
            refused = await self._script(keys=keys, args=arguments)
        except (RedisError, ConnectionError, TimeoutError) as error:
            _log.warning("streams wait for Redis", reason=type(error).__name__, streams=len(taken))
            # Of jobs that are settled nothing is kept: their readers find the stored result.
            self._pending = {job_id: entry for job_id, entry in taken.items() if job_id not in ended} | self._pending
            if self._pending:
                self._something.set()
            return False
        for entry in taken.values():
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
        self.frames: asyncio.Queue[Frame | None] = asyncio.Queue()

    @property
    def place(self) -> tuple[int, int]:
        """The last entry it has."""
        return self.order, self.number

    def take(self, order: int, number: int, event: str, try_number: int, text: str) -> None:
        """An entry; those that were seen are passed over."""
        if (order, number) <= self.place:
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
    async def follow(self, job_id: JobId) -> AsyncIterator["asyncio.Queue[Frame | None]"]:
        """The frames of a job from the first on, also of one that began long ago. None is the caller's to put in."""
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
            await ended(self._task)
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
        # Of two readers of one stream the one that is behind decides; the other passes over what it has.
        places = {key: min(follower.place for follower in followers) for key, followers in self._followers.items()}
        ids = [f"{order}-{number}" for order, number in places.values()]
        found: Any = await self._redis.execute_command(  # type: ignore[no-untyped-call]
            "XREAD", "COUNT", _ENTRIES_A_LOOK, "BLOCK", _LOOK_MS, "STREAMS", *places, *ids
        )
        for key, entries in found or ():
            # Whoever joined meanwhile wants what was before, and gets it with the next look.
            followers = [follower for follower in self._followers.get(key, ()) if follower.place >= places[key]]
            for entry_id, fields in entries:
                order, _, number = entry_id.partition("-")
                for follower in followers:
                    follower.take(int(order), int(number), fields["event"], int(fields["try"]), fields["text"])


__all__ = ["TRIES_OF_A_RUN", "Frame", "StreamReader", "StreamWriter"]
