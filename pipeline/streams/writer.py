"""Write the frames of streamed answers. One command has the frames of all answers that a process writes at that moment."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis import asyncio as aioredis
from redis.exceptions import RedisError

from pipeline.concurrency.backoff import Backoff
from pipeline.redis_url import parse_redis_url
from schemas.ids import JobId
from schemas.streams import stream_name

_log = structlog.get_logger(__name__)
_FRAME_SECONDS = 0.04
_LIFETIME_MS = 600_000
_END_ORDER = 2**53 - 1  # larger than that of any attempt: after the end Redis accepts no more entries
ATTEMPTS_PER_RUN = 100
"""Orders that one run of a chunk may use; see `StreamWriter.begin`."""

# Once for each frame: its attempt follows from the entry before it. A frame that exists already was written by a command
# whose reply was lost; one that Redis refuses belongs to an attempt that was superseded.
_WRITE = """
local refused = {}
for i, key in ipairs(KEYS) do
    local order, number, text = ARGV[3 * i], ARGV[3 * i + 1], ARGV[3 * i + 2]
    local id, event, attempt = order .. '-' .. number, 'text', 1
    local found = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)
    local last = found[1]
    local exists = false
    if last then
        local last_order, last_number = string.match(last[1], '(%d+)-(%d+)')
        exists = last_order == order and tonumber(last_number) >= tonumber(number)
        attempt = tonumber(last[2][4])
        if number == '0' then event, attempt = 'restart', attempt + 1 end
    end
    if order == ARGV[2] then event, attempt = 'end', last and tonumber(last[2][4]) or 1 end
    if found.err then
        refused[#refused + 1] = i
    elseif not exists then
        local done = redis.pcall('XADD', key, id, 'event', event, 'attempt', attempt, 'text', text)
        if type(done) == 'table' and done.err then refused[#refused + 1] = i end
    end
    redis.call('PEXPIRE', key, ARGV[1])
end
return refused
"""


@dataclass(slots=True)
class _OpenAttempt:
    """One attempt of one job whose answer is being written; `unconfirmed` are frames that may have been written."""

    job_id: JobId
    order: int
    frames: int = 0
    pieces: list[str] = field(default_factory=list)
    unconfirmed: list[tuple[int, str]] = field(default_factory=list)
    superseded: bool = False

    def seal(self) -> None:
        """Make a frame of the pieces since the last one; when it is sent again it stays the same."""
        if self.pieces:
            self.unconfirmed.append((self.frames, "".join(self.pieces)))
            self.frames += 1
            self.pieces.clear()


class StreamWriter:
    """Writes the frames of the answers that a process generates."""

    def __init__(self, redis_url: str) -> None:
        self._redis: aioredis.Redis = aioredis.from_url(
            parse_redis_url(redis_url).url, socket_connect_timeout=5, socket_timeout=5, health_check_interval=30
        )
        self._script = self._redis.register_script(_WRITE)
        self._pending: dict[JobId, _OpenAttempt] = {}
        self._ended: dict[JobId, None] = {}
        self._has_pending = asyncio.Event()
        self._flush_now = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self, job_id: JobId, order: int) -> Callable[[str], None]:
        """Begin a new attempt of a job; call the function that is returned with each piece of text.

        `order` is larger than that of every earlier attempt, whichever process made it.
        """
        opened = _OpenAttempt(job_id, order)

        def write(text: str) -> None:
            if opened.superseded:
                return
            first = not opened.pieces and not opened.frames
            opened.pieces.append(text)
            self._pending[job_id] = opened
            self._wake(now=first)

        return write

    def end(self, job_ids: Iterable[JobId]) -> None:
        """End the streams of settled jobs, after the frames that are pending."""
        ended = dict.fromkeys(job_ids)
        if ended:
            self._ended |= ended
            self._wake(now=True)

    async def close(self) -> None:
        """Write what is pending, if Redis accepts it, and close."""
        if self._task is not None:
            self._closing.set()
            self._wake(now=True)
            await asyncio.wait({self._task})
            await self._flush(everything=True)  # what arrived during the last flush
        await self._redis.aclose()

    def _wake(self, *, now: bool) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._write_forever())
        self._has_pending.set()
        if now:
            self._flush_now.set()

    async def _write_forever(self) -> None:
        """Flush every 40 ms; an answer that begins or ends is flushed at once, without the half frames of others."""
        due, backoff = 0.0, Backoff()
        while not self._closing.is_set():
            await self._has_pending.wait()
            everything = False
            try:
                async with asyncio.timeout_at(due):
                    await self._flush_now.wait()
            except TimeoutError:
                everything = True
                due = asyncio.get_running_loop().time() + _FRAME_SECONDS
            if await self._flush(everything=everything or self._closing.is_set()):
                backoff.reset()
            else:
                await backoff.wait(self._closing)

    async def _flush(self, *, everything: bool) -> bool:
        """Write pending frames in one command; False where that failed, and they are kept for the next one."""
        self._flush_now.clear()
        taken = {
            job_id: attempt
            for job_id, attempt in self._pending.items()
            if everything or not attempt.frames or job_id in self._ended
        }
        ended, self._ended = self._ended, {}
        for job_id, attempt in taken.items():
            del self._pending[job_id]
            attempt.seal()
        if not self._pending:
            self._has_pending.clear()
        frames = [(attempt, number, text) for attempt in taken.values() for number, text in attempt.unconfirmed]
        if not frames and not ended:
            return True
        try:
            refused = await self._send(frames, ended)
        except (RedisError, ConnectionError, TimeoutError) as error:
            _log.warning("streams wait for Redis", reason=type(error).__name__, streams=len(taken))
            # Frames of settled jobs are not kept: their readers find the stored result.
            self._pending = {job_id: kept for job_id, kept in taken.items() if job_id not in ended} | self._pending
            if self._pending:
                self._has_pending.set()
            return False
        for attempt in taken.values():
            attempt.unconfirmed.clear()
        for place in refused:
            if place <= len(frames):
                frames[place - 1][0].superseded = True
        return True

    async def _send(self, frames: list[tuple[_OpenAttempt, int, str]], ended: Iterable[JobId]) -> list[int]:
        """Send frames and ends; returns the places, from 1, of those that Redis refused."""
        keys = [stream_name(attempt.job_id) for attempt, _, _ in frames]
        arguments: list[Any] = [_LIFETIME_MS, _END_ORDER]
        for attempt, number, text in frames:
            arguments += (attempt.order, number, text)
        for job_id in ended:
            keys.append(stream_name(job_id))
            arguments += (_END_ORDER, 0, "")
        refused: list[int] = await self._script(keys=keys, args=arguments)
        return refused
