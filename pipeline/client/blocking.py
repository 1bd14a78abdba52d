"""The blocking form of the client."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from functools import wraps
from itertools import islice
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from pipeline.batches import Batch, several
from pipeline.client.asynchronous import FORKED, NOT_OPEN, AsyncClient
from pipeline.client.batches import AsyncBatches
from schemas.job import Job

_JOBS_AT_ONCE = 1_000
P = ParamSpec("P")
T = TypeVar("T")


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Client", P], T]:
    """Make the blocking form of a method, with its signature and documentation."""

    @wraps(method)
    def blocking(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(method(self._async, *args, **kwargs))

    return blocking


def _iterating(
    method: Callable[Concatenate[AsyncClient, P], AsyncIterator[T]],
) -> Callable[Concatenate["Client", P], Iterator[T]]:
    """Make the blocking form of an iterator, with its signature and documentation."""

    @wraps(method)
    def iterating(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._iterate(method(self._async, *args, **kwargs))

    return iterating


def _of_batches(
    method: Callable[Concatenate[AsyncBatches, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Batches", P], T]:
    """Make the blocking form of a method of `client.batches`."""

    @wraps(method)
    def blocking(self: "Batches", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._client._run(method(self._client._async.batches, *args, **kwargs))

    return blocking


def _iterating_of_batches(
    method: Callable[Concatenate[AsyncBatches, P], AsyncIterator[T]],
) -> Callable[Concatenate["Batches", P], Iterator[T]]:
    """Make the blocking form of an iterator of `client.batches`."""

    @wraps(method)
    def iterating(self: "Batches", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._client._iterate(method(self._client._async.batches, *args, **kwargs))

    return iterating


class Batches:
    """The blocking form of AsyncBatches."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    create = _of_batches(AsyncBatches.create)
    get = _of_batches(AsyncBatches.get)
    list = _of_batches(AsyncBatches.list)
    pause = _of_batches(AsyncBatches.pause)
    resume = _of_batches(AsyncBatches.resume)
    cancel = _of_batches(AsyncBatches.cancel)
    retry = _of_batches(AsyncBatches.retry)
    watch = _iterating_of_batches(AsyncBatches.watch)
    output = _iterating_of_batches(AsyncBatches.output)
    errors = _iterating_of_batches(AsyncBatches.errors)
    output_since = _of_batches(AsyncBatches.output_since)


class Client:
    """The blocking form of AsyncClient; safe to use from many threads. Use it as `with Client() as client`.

    Every method runs that of AsyncClient on a loop in a thread of its own, so jobs submitted by many
    threads share messages too.
    """

    def __init__(self, *, database_url: str | None = None, redis_url: str | None = None) -> None:
        self._async = AsyncClient(database_url=database_url, redis_url=redis_url)
        self.batches = Batches(self)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    submit = _blocking(AsyncClient.submit)
    result = _blocking(AsyncClient.result)
    stream = _iterating(AsyncClient.stream)
    follow = _iterating(AsyncClient.follow)
    get = _blocking(AsyncClient.get)
    list_jobs = _blocking(AsyncClient.list_jobs)
    cancel = _blocking(AsyncClient.cancel)
    batch_progress = _blocking(AsyncClient.batch_progress)
    watch_batch = _iterating(AsyncClient.watch_batch)
    batch_outcomes = _iterating(AsyncClient.batch_outcomes)

    def submit_many(
        self,
        jobs: Iterable[Job | dict[str, Any]],
        *,
        name: str = "batch",
        tenant: str | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Store jobs for the bulk lane, all or none, in their order; see AsyncClient.submit_many."""
        # Consumed here: the caller's generator may use this client, and must not run on the client's loop.
        given = iter(several(jobs))
        with self._async.draft_batch(name=name, tenant=tenant, idempotency_key=idempotency_key) as draft:
            while some := list(islice(given, _JOBS_AT_ONCE)):
                self._run(draft.add(some))
            return self._run(draft.submit())

    submit_many.__doc__ = AsyncClient.submit_many.__doc__

    def __enter__(self) -> Self:
        started = threading.Event()

        def live() -> None:
            with asyncio.Runner(loop_factory=self._async._wiring.loop_factory()) as runner:
                self._loop = runner.get_loop()
                self._loop.call_soon(started.set)
                self._loop.run_forever()

        self._thread = threading.Thread(target=live, name="yyc3-client", daemon=True)
        self._thread.start()
        started.wait()
        try:
            self._run(self._async.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._async.forked:
            return  # the parent closes what it opened
        try:
            self._run(self._async.__aexit__(kind, value, traceback))
        finally:
            self._stop()

    def _stop(self) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> T | None:
            return await anext(items, None)

        while (item := self._run(following())) is not None:
            yield item

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None or self._async.forked:
            work.close()
            raise RuntimeError(NOT_OPEN if self._loop is None else FORKED)  # a child has no thread that would answer
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the caller's thread ends the wait, not the job
            raise
