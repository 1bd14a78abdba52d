"""Rows to the engine: put together to requests when there is room, at the endpoint that has the least to do."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from uuid import UUID

import structlog

from pipeline import kinds
from pipeline.engine import Endpoint, EnginePool
from pipeline.engine.breaker import BreakerState
from pipeline.engine.client import BatchRouteMissing
from pipeline.kinds import Answer
from pipeline.observability.logging import fault
from pipeline.policies.chunking import LONGEST_WAIT_SECONDS, Line, rows_now
from pipeline.store.answer_cache import Original
from pipeline.streams.writer import TRIES_OF_A_RUN, StreamWriter
from schemas.doorbells import Lane
from schemas.errors import (
    EngineError,
    EngineFailed,
    EngineOverloaded,
    ErrorCode,
    InvalidOutput,
    OwnFault,
    RequestRejected,
)
from workers.execution.run import Request, Row, Run

_log = structlog.get_logger(__name__)
BULK_PRIORITY = 100
"""Added to the engine priority of bulk rows, so that chat goes first where the engine schedules by priority."""

_MAX_REFUSALS = 8


class Scheduler:
    """The rows of all runs of one model in this process, and what an answer means for each.

    A round of a row ends when it has an outcome, when a try failed and no other endpoint can be asked, or when nothing
    more is to be sent. Whoever sends it decides what comes next.
    """

    def __init__(self, pool: EnginePool, streams: StreamWriter) -> None:
        self._pool = pool
        self._streams = streams
        self._line: Line[Row] = Line()
        self._asked: dict[UUID, Row] = {}
        self._answered: dict[UUID, Original] = {}
        self._requests: set[Request] = set()
        self._stopped = False
        self._alarm: asyncio.TimerHandle | None = None
        pool.on_change = self._dispatch

    async def send(self, run: Run, rows: Sequence[Row]) -> None:
        """A round for each of these rows; what came of it stands in the run."""
        left = len(rows)
        over = asyncio.get_running_loop().create_future()

        def ended() -> None:
            nonlocal left
            left -= 1
            if not left and not over.done():
                over.set_result(None)

        for row in rows:
            row.ended = ended
            run.rows[row.claimed.job_id] = row
            self._add(row)
        self._dispatch()
        try:
            if left:
                await over
        except asyncio.CancelledError:
            run.abandoned = True
            for request in list(self._requests):
                request.cancel_unwanted()
            raise

    @property
    def waiting(self) -> int:
        """Rows that wait for room."""
        return len(self._line)

    def stored(self, keys: Iterable[UUID | None]) -> None:
        """The store knows the answers to these questions now, or never will."""
        for key in keys:
            if key is not None:
                self._answered.pop(key, None)

    def stop(self) -> None:
        """Send nothing more; what is in flight goes on."""
        self._stopped = True
        self._dispatch()

    def _add(self, row: Row) -> None:
        """In line, or behind the one who asks the same already, or not at all where the answer is on its way to the store."""
        if row.key is not None:
            answered = self._answered.get(row.key)
            if answered is not None:
                row.run.copy(row, answered)
                self._end(row)
                return
            first = self._asked.setdefault(row.key, row)
            if first is not row and (first.request is not None or first.urgency <= row.urgency):
                first.twins.append(row)
                return
        self._line.add(row)

    def _end(self, row: Row, original: Original | None = None) -> None:
        """The round of a row is over. Those who asked the same have its answer too; without one they ask themselves."""
        row.request = None
        if row.key is not None and self._asked.get(row.key) is row:
            del self._asked[row.key]
            if original is not None:
                self._answered[row.key] = original
        twins, row.twins = row.twins, []
        if twins and original is None and row.key is not None and not row.sent_at:
            # It was never sent: cancelled or expired in line, or everything goes back. The next takes its place.
            first = self._asked[row.key] = twins[0]
            first.twins = twins[1:]
            self._line.add(first)
            twins = []
        for twin in twins:
            if original is not None:
                twin.run.copy(twin, original)
                self._end(twin)
            else:
                twin.key = None  # what failed for one may fail for each: all at once, and each for itself
                self._line.add(twin)
        if row.ended is not None:
            ended, row.ended = row.ended, None
            ended()

    def _dispatch(self) -> None:
        """Send what there is room for. Called whenever something came, went, or changed."""
        aside: list[Row] = []
        while (head := self._line.head()) is not None:
            row, waiting = head
            if self._stopped or not self._pool.available:
                self._give_back()
                break
            if not self._worth_asking(row) or not self._pool.elsewhere(row.avoid):
                self._end(self._line.take(1)[0])
                continue
            endpoint = self._pool.choose(row.ask.opening, row.avoid)
            if endpoint is None and row.avoid and self._pool.has_room:
                aside += self._line.take(1)  # there is room, but not for this one: others go first
                continue
            rows = self._rows_now(endpoint, waiting) if endpoint is not None else 0
            if endpoint is None or not rows:
                self._look_again(endpoint)
                break
            self._start([one for one in self._line.take(rows) if self._kept(one)], endpoint)
        for row in reversed(aside):
            self._line.add(row)
        self._pool.hungry = bool(self._line)

    def _rows_now(self, endpoint: Endpoint, waiting: int) -> int:
        """How many of those that wait go there in one request now."""
        now = time.monotonic()
        waited = now - endpoint.narrow_since if endpoint.narrow_since else 0.0
        rows = rows_now(waiting, endpoint.room, endpoint.largest_batch, waited, idle=endpoint.in_flight == 0)
        if rows:
            endpoint.narrow_since = 0.0
        elif not endpoint.narrow_since:
            endpoint.narrow_since = now
        return rows

    def _kept(self, row: Row) -> bool:
        if self._worth_asking(row):
            return True
        self._end(row)
        return False

    def _worth_asking(self, row: Row) -> bool:
        """Not cancelled meanwhile, not lost; a deadline that has come is an outcome."""
        if row.wanted and row.run.past_deadline(row.claimed):
            row.run.expire(row.claimed.job_id)
        return row.wanted

    def _give_back(self) -> None:
        """Nobody can be asked, or nothing more is to be sent: the rows are for another run."""
        while rows := self._line.empty():  # who waited for another's answer comes to light when that one ends
            for row in rows:
                if not self._stopped and row.wanted:
                    row.run.last_code = row.run.last_code or ErrorCode.ENGINE_UNAVAILABLE
                self._end(row)

    def _look_again(self, endpoint: Endpoint | None) -> None:
        """Room that is too small now is taken a moment later; an endpoint that took no more is asked after its pause."""
        now = time.monotonic()
        pauses = [one.breaker.until for one in self._pool.endpoints if one.state is BreakerState.PAUSED]
        due = min(pauses, default=None) if endpoint is None else now + LONGEST_WAIT_SECONDS
        if due is None:
            return  # an answer or the watch will call
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_later(max(0.001, due - now), self._dispatch)

    def _start(self, rows: list[Row], endpoint: Endpoint) -> None:
        if not rows:
            return
        request = Request(rows, endpoint, endpoint.facts)
        self._requests.add(request)
        now = time.perf_counter()
        tokens = 0
        for row in rows:
            row.request = request
            row.sent_at = row.sent_at or now
            tokens += row.tokens + row.ask.longest_answer_tokens
        endpoint.in_flight += len(rows)
        endpoint.tokens += tokens
        endpoint.used_at = time.monotonic()
        request.task = asyncio.create_task(self._run(request))
        # Not in the task itself: one that is cancelled before its first step never gets that far.
        request.task.add_done_callback(lambda _: self._over(request, tokens))

    def _over(self, request: Request, tokens: int) -> None:
        """Answered, broken or given up: its room is free, and rows that were not judged go nowhere else."""
        self._requests.discard(request)
        request.endpoint.in_flight -= len(request.rows)
        request.endpoint.tokens -= tokens
        for row in request.rows:
            if row.request is request:
                self._end(row)
        self._pool.changed()

    async def _run(self, request: Request) -> None:
        """One request from sent to judged."""
        try:
            await self._ask(request)
        except Exception as mistake:  # noqa: BLE001 - it costs these rows a try, not the chunk; the log names it
            self._own_fault(request, mistake)

    async def _ask(self, request: Request) -> None:
        rows, endpoint = request.rows, request.endpoint
        started = time.monotonic()
        try:
            answers = [await self._one(rows[0], endpoint)] if len(rows) == 1 else await self._many(rows, endpoint)
        except BatchRouteMissing:
            endpoint.lose_batch_route()
            self._put_back(rows)
        except EngineError as error:
            endpoint.broke(error, len(rows), started)
            self._whole_failed(rows, endpoint, error)
        else:
            written = sum(answer.completion_tokens or 0 for answer in answers if isinstance(answer, Answer))
            endpoint.answered(time.monotonic() - started, written, len(rows))
            for row, answer in zip(rows, answers, strict=True):
                self._judge(row, answer, endpoint)

    async def _many(self, rows: list[Row], endpoint: Endpoint) -> Sequence[Answer | EngineError]:
        pool, priority = self._pool, self._priority(rows[0].run)
        return await pool.client.ask_many(endpoint.url, pool.entry.name, [row.ask for row in rows], priority)

    async def _one(self, row: Row, endpoint: Endpoint) -> Answer:
        run, on_text = row.run, None
        if row.claimed.job_id in run.streamed:
            # A later claim has a higher fence, a later try of this run a higher number.
            order = run.claim.fence * TRIES_OF_A_RUN + min(row.times_sent, TRIES_OF_A_RUN - 1)
            on_text = self._streams.begin(row.claimed.job_id, order)
            row.times_sent += 1
        # In bulk nobody sees the first token, and a stream costs a hundred times as much as one body.
        streamed = row.ask.shape.streamed and (run.claim.lane is Lane.INTERACTIVE or on_text is not None)
        pool = self._pool
        return await pool.client.ask(
            endpoint.url, pool.entry.name, row.ask, self._priority(run), streamed=streamed, on_text=on_text
        )

    def _priority(self, run: Run) -> int:
        return run.claim.priority + (BULK_PRIORITY if run.claim.lane is Lane.BULK else 0)

    def _whole_failed(self, rows: list[Row], endpoint: Endpoint, error: EngineError) -> None:
        """What goes wrong for all is not always the fault of each."""
        if isinstance(error, RequestRejected) and len(rows) > 1:
            # One bad row fails all. Halves, that share with nobody else, find it in a few more requests.
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                group = object()
                for row in half:
                    row.group = group
            self._put_back(rows)
            return
        if isinstance(error, EngineOverloaded):
            for row in rows:
                row.refused += 1
            self._put_back([row for row in rows if row.refused < _MAX_REFUSALS])
            rows = [row for row in rows if row.refused >= _MAX_REFUSALS]
        for row in rows:
            self._fail(row, error, endpoint)

    def _fail(self, row: Row, error: EngineError, endpoint: Endpoint) -> None:
        """A try failed: elsewhere at once if there is an elsewhere, in a later run if not."""
        row.run.fail_try(row, error, endpoint)
        row.avoid = (*row.avoid, endpoint.url)
        if not error.retryable or row.too_long or row.unread or not row.wanted or not self._pool.elsewhere(row.avoid):
            self._end(row)
            return
        if error.counts:
            row.group = row.claimed.job_id  # alone: if it breaks its engine, it breaks it for nobody else
        self._put_back([row])

    def _put_back(self, rows: list[Row]) -> None:
        for row in reversed(rows):
            row.request = None
            self._line.add(row)

    def _judge(self, row: Row, answer: Answer | EngineError, endpoint: Endpoint) -> None:
        """An answer is a result or a failed try; of a row that was cancelled meanwhile it is that of the next who asked."""
        if not row.wanted and (heir := next((twin for twin in row.twins if twin.wanted), None)) is not None:
            request = heir.request = row.request
            if request is not None:
                request.rows[request.rows.index(row)] = heir
            heir.twins, row.twins = [twin for twin in row.twins if twin is not heir], []
            heir.sent_at = heir.sent_at or row.sent_at
            if row.key is not None:
                self._asked[row.key] = heir
            self._end(row)
            row = heir
        try:
            if isinstance(answer, EngineError):
                raise answer
            result = kinds.read(row.job, row.ask, answer)
        except EngineError as error:
            row.unread = isinstance(error, InvalidOutput)
            if isinstance(error, EngineFailed):
                endpoint.broke(error, 1, time.monotonic())  # it is stopping: others will be broken off too
            self._fail(row, error, endpoint)
            return
        self._end(row, row.run.succeed(row, result, answer, endpoint))

    def _own_fault(self, request: Request, mistake: Exception) -> None:
        _log.error(
            "a try broke in our own code", model=self._pool.entry.name, rows=len(request.rows), fault=fault(mistake)
        )
        error = OwnFault(f"a mistake in this program: {fault(mistake)}")
        for row in request.rows:
            if row.request is request and row.wanted:
                row.run.fail_try(row, error, request.endpoint)


__all__ = ["BULK_PRIORITY", "Scheduler"]
