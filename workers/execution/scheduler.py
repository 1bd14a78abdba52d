"""Send rows to engines: put together to requests when there is capacity, at the endpoint with the least load."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from uuid import UUID

from pipeline import kinds
from pipeline.engine import Endpoint, EnginePool
from pipeline.engine.breaker import BreakerState
from pipeline.kinds import Completion
from pipeline.store.answer_cache import CachedAnswer
from pipeline.streams import StreamWriter
from schemas.errors import (
    EngineError,
    EngineFailed,
    EngineOverloaded,
    ErrorCode,
    InvalidOutput,
    RequestRejected,
)
from schemas.results import Result
from workers.execution.requests import Requests
from workers.execution.row_queue import LONGEST_WAIT_SECONDS, RowQueue, request_size
from workers.execution.run import Row, Run
from workers.execution.sending import Sender
from workers.execution.single_flight import SingleFlight

_MAX_REFUSALS = 8


class Scheduler:
    """The rows of all runs of one model in this process, and what a completion means for each.

    A round of a row ends when it has an outcome, when an attempt failed and no other endpoint can be
    used, or when no more rows are sent. Its run then decides what comes next.
    """

    def __init__(self, pool: EnginePool, streams: StreamWriter) -> None:
        self._pool = pool
        self._queue: RowQueue[Row] = RowQueue()
        self._flights = SingleFlight()
        self._requests = Requests(pool, Sender(pool, streams), self)
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        pool.on_change = self._dispatch
        pool.on_hung = self._requests.give_up

    async def send(self, run: Run, rows: Sequence[Row]) -> None:
        """Run a round for each of these rows; their outcomes are added to the run."""
        unfinished = len(rows)
        all_finished = asyncio.get_running_loop().create_future()

        def finished() -> None:
            nonlocal unfinished
            unfinished -= 1
            if not unfinished and not all_finished.done():
                all_finished.set_result(None)

        for row in rows:
            row.on_finished = finished
            run.rows[row.job_id] = row
            self._add(row)
        self._dispatch()
        try:
            if unfinished:
                await all_finished
        except asyncio.CancelledError:
            run.abandoned = True
            self._requests.cancel_unused()
            raise

    @property
    def waiting(self) -> int:
        """Rows that wait for capacity."""
        return len(self._queue)

    def stored(self, keys: Iterable[UUID | None]) -> None:
        """Forget answers that the store has now, or never will have."""
        self._flights.stored(keys)

    def stop(self) -> None:
        """Send no more rows; requests in flight continue."""
        self._stopped = True
        self._dispatch()

    def _add(self, row: Row) -> None:
        """Queue a row, unless its question is answered or in flight."""
        answer = self._flights.answer_for(row)
        if answer is not None:
            row.run.copy(row, answer)
            self.finish_row(row)
        elif not self._flights.join(row):
            self._queue.add(row)

    def finish_row(self, row: Row, answer: CachedAnswer | None = None) -> None:
        """End the round of a row; rows that asked the same get its answer, or are queued."""
        row.in_request = None
        answered, queued = self._flights.land(row, answer)
        for other in queued:
            self._queue.add(other)
        for follower in answered:
            assert answer is not None
            follower.run.copy(follower, answer)
            self.finish_row(follower)
        if row.on_finished is not None:
            finished, row.on_finished = row.on_finished, None
            finished()

    def _dispatch(self) -> None:
        """Send as many rows as there is capacity for. Called after every change of rows, load or endpoints."""
        skipped: list[Row] = []
        while (head := self._queue.peek()) is not None:
            row, waiting = head
            if self._stopped or not self._pool.available:
                self._return_all()
                break
            if not self._is_runnable(row) or not self._pool.has_alternative(row.excluded):
                self.finish_row(self._queue.take(1)[0])
                continue
            endpoint = self._pool.choose(row.request.prefix_key, row.excluded)
            if endpoint is None and row.excluded and self._pool.has_capacity:
                skipped += self._queue.take(1)  # there is capacity, but not for this row: others go first
                continue
            rows = self._request_size(endpoint, row, waiting) if endpoint is not None else 0
            if endpoint is None or not rows:
                self._schedule_dispatch(endpoint)
                break
            self._requests.start(
                [one for one in self._queue.take(rows, endpoint.prompt_room) if self._keep(one)], endpoint
            )
        for row in reversed(skipped):
            self._queue.add(row)
        self._pool.has_backlog = bool(self._queue)

    def _request_size(self, endpoint: Endpoint, head: Row, waiting: int) -> int:
        now = time.monotonic()
        waited = now - endpoint.capacity_short_since if endpoint.capacity_short_since else 0.0
        idle = endpoint.in_flight == 0
        most = int(min(endpoint.largest_batch, max(1.0, endpoint.prompt_room / max(1, head.tokens))))
        rows = request_size(waiting, endpoint.capacity, most, waited, idle=idle)
        if rows:
            endpoint.capacity_short_since = 0.0
        elif not endpoint.capacity_short_since:
            endpoint.capacity_short_since = now
        return rows

    def _keep(self, row: Row) -> bool:
        if self._is_runnable(row):
            return True
        self.finish_row(row)
        return False

    def _is_runnable(self, row: Row) -> bool:
        """Whether a row was neither cancelled, lost nor given back meanwhile; one past its deadline is settled."""
        if row.is_pending and row.run.past_deadline(row.claimed):
            row.run.expire(row.claimed)
        return row.is_pending and not row.run.given_back

    def _return_all(self) -> None:
        """End the round of every queued row: no endpoint can be used, or no more rows are sent."""
        while rows := self._queue.drain():  # finishing a leader may queue its followers
            for row in rows:
                if not self._stopped and row.is_pending:
                    row.run.last_code = row.run.last_code or ErrorCode.ENGINE_UNAVAILABLE
                self.finish_row(row)

    def _schedule_dispatch(self, endpoint: Endpoint | None) -> None:
        """Dispatch later: after the longest wait for capacity, or when an endpoint may be used again."""
        now = time.monotonic()
        pauses = [one.breaker.until for one in self._pool.endpoints if one.state is BreakerState.PAUSED]
        pauses += [now + one.paced_for for one in self._pool.endpoints if one.paced_for]
        due = min(pauses, default=None) if endpoint is None else now + LONGEST_WAIT_SECONDS
        if due is None:
            return  # a completion or the watch of the pool will dispatch
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(0.001, due - now), self._dispatch)

    def fail_request(self, rows: Sequence[Row], endpoint: Endpoint, error: EngineError) -> None:
        """Decide what a failed request means for each of its rows."""
        if isinstance(error, RequestRejected) and len(rows) > 1:
            # One bad row fails all. Halves, shared with no other rows, find it in a few more requests.
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                group = object()
                for row in half:
                    row.group = group
            self.put_back(rows)
            return
        if isinstance(error, EngineOverloaded):
            for row in rows:
                row.refusals += 1
            self.put_back([row for row in rows if row.refusals < _MAX_REFUSALS])
            rows = [row for row in rows if row.refusals >= _MAX_REFUSALS]
        for row in rows:
            self._fail(row, error, endpoint)

    def _fail(self, row: Row, error: EngineError, endpoint: Endpoint) -> None:
        """Record a failed attempt; the row goes to another endpoint at once, or to a later round if there is none."""
        row.run.fail_attempt(row, error, endpoint)
        row.excluded = (*row.excluded, endpoint.url)
        retry = error.retryable and row.is_pending and not row.too_long and not row.undecodable
        if not retry or not self._pool.has_alternative(row.excluded):
            self.finish_row(row)
            return
        if error.consumes_attempt:
            row.group = row.job_id  # alone: if it crashes its engine, it harms no other row
        self.put_back([row])

    def put_back(self, rows: Sequence[Row]) -> None:
        """Queue rows again, at their former positions."""
        for row in reversed(rows):
            row.in_request = None
            self._queue.add(row)

    def settle_row(self, row: Row, completion: Completion | EngineError, endpoint: Endpoint) -> None:
        """Settle a row with its completion; that of a row cancelled meanwhile belongs to the next one that asked the same."""
        next_caller = self._flights.take_over(row)
        if next_caller is not None:
            self.finish_row(row)
            row = next_caller
        result = _decode(row, completion)
        if isinstance(result, EngineError):
            row.undecodable = isinstance(result, InvalidOutput)
            if isinstance(result, EngineFailed):
                endpoint.record_failure(result, 1, time.monotonic())  # it is stopping: other rows will be aborted too
            self._fail(row, result, endpoint)
        else:
            assert isinstance(completion, Completion)
            self.finish_row(row, row.run.succeed(row, result, completion, endpoint))


def _decode(row: Row, completion: Completion | EngineError) -> Result | EngineError:
    if isinstance(completion, EngineError):
        return completion
    try:
        return kinds.decode(row.job, row.request, completion)
    except EngineError as error:
        return error
