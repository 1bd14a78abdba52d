"""The engine requests of one model that are in flight: begun, answered, failed, given up."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import structlog

from pipeline.engine import Endpoint, EnginePool
from pipeline.engine.client import BatchRouteMissing
from pipeline.engine.endpoint import Load
from pipeline.kinds import Completion
from pipeline.observability.logging import safe_error_summary
from schemas.errors import EngineError, EngineUnavailable, InternalError
from workers.execution.run import EngineRequest, Row
from workers.execution.sending import Sender

_log = structlog.get_logger(__name__)


class Rows(Protocol):
    """Decides what the end of a request means for each of its rows."""

    def settle_row(self, row: Row, completion: Completion | EngineError, endpoint: Endpoint) -> None:
        """Settle a row with its completion, or record its failed attempt."""
        ...

    def fail_request(self, rows: Sequence[Row], endpoint: Endpoint, error: EngineError) -> None:
        """Decide about the rows of a request that failed as a whole."""
        ...

    def put_back(self, rows: Sequence[Row]) -> None:
        """Queue rows again, at their former positions."""
        ...

    def finish_row(self, row: Row) -> None:
        """End the round of a row that has no outcome."""
        ...


class Requests:
    """Requests in flight.

    Args:
        pool: the endpoints.
        sender: sends them.
        rows: hears what became of them.
    """

    def __init__(self, pool: EnginePool, sender: Sender, rows: Rows) -> None:
        self._pool = pool
        self._sender = sender
        self._rows = rows
        self._requests: set[EngineRequest] = set()

    def start(self, rows: list[Row], endpoint: Endpoint) -> None:
        """Send rows together."""
        if not rows:
            return
        capabilities = endpoint.capabilities
        revision = self._pool.revision_of(capabilities) if capabilities else ""
        request = EngineRequest(rows, endpoint, capabilities, revision)
        self._requests.add(request)
        now = time.perf_counter()
        for row in rows:
            row.in_request = request
            row.sent_at = row.sent_at or now
        load = Load(len(rows), sum(row.tokens for row in rows), sum(row.request.max_tokens for row in rows))
        endpoint.begin(load)
        request.task = asyncio.create_task(self._run(request))
        # Not in the task itself: a task that is cancelled before its first step never gets that far.
        request.task.add_done_callback(lambda _: self._on_done(request, load))

    def cancel_unused(self) -> None:
        """Abort requests that no row needs any more."""
        for request in list(self._requests):
            request.cancel_if_unused()

    def give_up(self, endpoint: Endpoint) -> None:
        """End the requests of an endpoint that hangs: their rows go elsewhere, or wait for it without an attempt."""
        _log.warning("endpoint hangs", model=self._pool.entry.name, endpoint=endpoint.url, rows=endpoint.in_flight)
        for request in list(self._requests):
            if request.endpoint is endpoint and request.task is not None:
                request.given_up = True
                request.task.cancel()

    def _on_done(self, request: EngineRequest, load: Load) -> None:
        """Release the capacity of a request; rows of it that have no outcome end their round."""
        self._requests.discard(request)
        request.endpoint.end(load)
        for row in request.rows:
            if row.in_request is request:
                self._rows.finish_row(row)
        self._pool.notify_changed()

    async def _run(self, request: EngineRequest) -> None:
        try:
            await self._complete(request)
        except asyncio.CancelledError:
            if not request.given_up:
                raise
            url = request.endpoint.url
            self._rows.fail_request(request.rows, request.endpoint, EngineUnavailable(f"{url} hangs", endpoint=url))
        except Exception as bug:  # noqa: BLE001 - it costs these rows an attempt, not the chunk; the log names it
            self._fail_internally(request, bug)

    async def _complete(self, request: EngineRequest) -> None:
        rows, endpoint = request.rows, request.endpoint
        started = time.monotonic()
        try:
            completions = await self._sender.send(rows, endpoint)
        except BatchRouteMissing:
            endpoint.lose_batch_route()
            self._rows.put_back(rows)
        except EngineError as refused:
            error = await self._pool.judge(endpoint, refused)
            endpoint.record_failure(error, len(rows), started)
            self._rows.fail_request(rows, endpoint, error)
        else:
            tokens = sum(one.completion_tokens or 0 for one in completions if isinstance(one, Completion))
            endpoint.record_success(time.monotonic() - started, tokens, len(rows))
            for row, completion in zip(rows, completions, strict=True):
                self._rows.settle_row(row, completion, endpoint)

    def _fail_internally(self, request: EngineRequest, bug: Exception) -> None:
        summary = safe_error_summary(bug)
        _log.error(
            "an attempt failed in our own code", model=self._pool.entry.name, rows=len(request.rows), fault=summary
        )
        error = InternalError(f"an internal error: {summary}")
        for row in request.rows:
            if row.in_request is request and row.is_pending:
                row.run.fail_attempt(row, error, request.endpoint)
