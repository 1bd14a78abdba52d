"""Take a chunk, run it, settle it: what happens between a doorbell and an outcome. One asyncio loop a process."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import structlog

from pipeline import kinds
from pipeline.broker import CANCELLED, Bells, Whispers
from pipeline.engine import EnginePool
from pipeline.kinds.cache_key import answer_key
from pipeline.models import LabelForm
from pipeline.observability.logging import fault
from pipeline.policies import retries
from pipeline.policies.chunking import Coalescer
from pipeline.store import Database, answer_cache, claims, endpoint_samples, settlement
from pipeline.store.answer_cache import Original
from pipeline.store.claims import Claim, ClaimedJob
from pipeline.store.endpoint_samples import EndpointSample
from pipeline.store.settlement import NextState, RunReport
from pipeline.streams.writer import StreamWriter
from schemas.doorbells import Doorbell, Lane
from schemas.errors import (
    BrokerUnavailable,
    EngineError,
    ErrorCode,
    InvalidJob,
    StoreError,
    StoreUnavailable,
    ValueRefused,
)
from schemas.ids import JobId
from schemas.jobs import Job, StreamedJob, parse_job
from schemas.results import JobState
from workers.delivery.consumption import Taking
from workers.execution.leases import Leases
from workers.execution.run import Row, Run
from workers.execution.scheduler import Scheduler

_log = structlog.get_logger(__name__)
_BULK_WRITE_SECONDS = 0.5
_STORE_RETRY_SECONDS = 1.0
_HAND_BACK_SECONDS = 5.0
_CHAT_SECONDS = 30.0
_ANNOUNCE_SECONDS = 1.0
_HEARD_LONG_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How this process behaves in time."""

    lease: timedelta
    drain: timedelta


class Process:
    """Everything a worker process does with doorbells.

    Args:
        pools: engine pools by model.
        worker: the Celery node name, for those who look at chunks.
        taking: is told whether doorbells of a model should come at all.
    """

    def __init__(
        self,
        database: Database,
        bells: Bells,
        whispers: Whispers,
        streams: StreamWriter,
        pools: Mapping[str, EnginePool],
        limits: Limits,
        worker: str,
        lane: Lane,
        taking: Taking,
    ) -> None:
        self._database = database
        self._bells = bells
        self._whispers = whispers
        self._streams = streams
        self._pools = pools
        self._schedulers = {name: Scheduler(pool, streams) for name, pool in pools.items()}
        self._limits = limits
        self._worker = worker
        self._lane = lane
        self._chats: dict[str, asyncio.TimerHandle] = {}
        self._announced: dict[str, float] = {}
        self._announcing: set[asyncio.Task[None]] = set()
        for name, pool in pools.items():
            pool.on_available = partial(self._turn, name)
        self._taking = taking
        self._leases = Leases(database, limits.lease)
        self._stop = asyncio.Event()
        self._work: set[asyncio.Task[None]] = set()
        self._claim_named: Coalescer[tuple[JobId, UUID], Claim | None] = Coalescer(self._claim_many)
        self._settle: Coalescer[RunReport, bool] = Coalescer(self._settle_many, largest=256)
        self._answers: Coalescer[list[UUID], dict[UUID, Original]] = Coalescer(self._look_up_answers, largest=256)

    async def serve(self) -> None:
        """Keep leases and hear of cancelled jobs, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._leases.keep())
            group.create_task(self._go_on_hearing(self._hear_of_cancelled))
            group.create_task(self._sample())
            if self._lane is Lane.BULK:
                group.create_task(self._go_on_hearing(self._hear_of_chat))
            for pool in self._pools.values():
                group.create_task(pool.watch())

    def _turn(self, model: str, available: bool) -> None:
        self._taking.turn(model, on=available)

    async def _go_on_hearing(self, hear: Callable[[], Awaitable[None]]) -> None:
        attempt = 0
        while True:
            started = time.monotonic()
            try:
                await hear()
            except BrokerUnavailable as error:
                _log.warning("cancelled jobs and chats are noticed later for now", reason=error.message)
            attempt = 1 if time.monotonic() - started > _HEARD_LONG_SECONDS else attempt + 1
            await asyncio.sleep(retries.delay(attempt).total_seconds())

    async def _hear_of_cancelled(self) -> None:
        async for job_ids in self._whispers.listen(CANCELLED, asyncio.Event()):
            self._leases.cancel(job_ids)

    async def _hear_of_chat(self) -> None:
        """Seats are left free from the first word of a chat until half a minute after the last."""
        loop = asyncio.get_running_loop()
        async for model in self._whispers.hear_of_chat():
            if model in self._pools:
                self._pools[model].chat(True)
                if model in self._chats:
                    self._chats[model].cancel()
                self._chats[model] = loop.call_later(_CHAT_SECONDS, self._pools[model].chat, False)

    def _announce_chat(self, model: str) -> None:
        """At most once a second, and nobody waits for it."""
        now = time.monotonic()
        if now - self._announced.get(model, -_ANNOUNCE_SECONDS) >= _ANNOUNCE_SECONDS:
            self._announced[model] = now
            task = asyncio.create_task(self._say_that_somebody_waits(model))
            self._announcing.add(task)
            task.add_done_callback(self._announcing.discard)

    async def _say_that_somebody_waits(self, model: str) -> None:
        try:
            await self._whispers.announce_chat(model)
        except BrokerUnavailable as error:
            _log.warning("bulk does not know that somebody waits", model=model, reason=error.message)

    async def _sample(self) -> None:
        """How the endpoints are, for those who look at queues."""
        while True:
            await asyncio.sleep(endpoint_samples.SAMPLE_SECONDS)
            taken = [
                EndpointSample(
                    worker=self._worker,
                    endpoint=url,
                    model=name,
                    lane=self._lane,
                    waiting_rows=self._schedulers[name].waiting,
                    **seen,
                )
                for name, pool in self._pools.items()
                for url, seen in pool.sampled(endpoint_samples.SAMPLE_SECONDS).items()
            ]
            try:
                if taken:
                    await endpoint_samples.write(self._database, taken)
            except StoreError as error:
                _log.warning("endpoints were not sampled", reason=error.message)

    async def answer(self, doorbell: Doorbell, started: Callable[[Run], None]) -> dict[str, Any]:
        """Take what the doorbell is for, run and settle it.

        Returns a few numbers for Flower; `rows` is 0 where somebody else was first, which is normal. `started` is called
        with the run once there is one, so that its progress can be shown.
        """
        if self._stop.is_set() or doorbell.model not in self._pools:
            return {"rows": 0, "note": "draining" if self._stop.is_set() else "model not served here"}
        if self._pools[doorbell.model].out:
            self._taking.again(doorbell.model)  # recovery rings again
            return {"rows": 0, "note": "no endpoint answers"}
        claim = await self._claim(doorbell)
        if claim is None:
            return {"rows": 0, "note": "nothing to take"}
        if self._lane is Lane.INTERACTIVE:
            self._announce_chat(doorbell.model)
        run = Run(claim)
        started(run)
        work = asyncio.create_task(self._execute(run))
        self._work.add(work)
        self._leases.hold(run, work)
        try:
            await asyncio.wait({work})
            if not work.cancelled():
                work.result()
        finally:
            self._leases.release(run)
            self._work.discard(work)
        if doorbell.chunk is None:
            await self._ring_again(doorbell)
        return {
            "chunk": claim.first_job_id,
            "batch": claim.batch_id,
            "rows": claim.rows,
            "rows_done": run.done_rows,
            "rows_failed": run.failed,
        }

    async def drain(self) -> None:
        """Send nothing more, let what is in flight end within the limit, hand the rest back."""
        self._stop.set()
        for scheduler in self._schedulers.values():
            scheduler.stop()
        _log.info("draining", runs=len(self._work))
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.drain.total_seconds()
        await asyncio.sleep(0)  # a run that was just made begins, or it could not hand its chunk back
        while self._work:
            # A claim that was in the air when the drain began comes in as a run of its own.
            _, late = await asyncio.wait(self._work, timeout=max(0.0, end - loop.time()))
            if late:
                for work in late:
                    work.cancel()
                _, stuck = await asyncio.wait(late, timeout=_HAND_BACK_SECONDS)
                for work in stuck:  # the database is away: what was not stored is run again when the lease has run out
                    _log.error("stopping with results that could not be stored")
                    work.cancel()

    async def _claim(self, doorbell: Doorbell) -> Claim | None:
        run_id = uuid4()  # made before it is sent: a claim whose reply was lost is repeated and finds its chunk
        while True:
            try:
                if doorbell.chunk is not None:
                    return await self._claim_named((doorbell.chunk, run_id))
                return await claims.claim_best(
                    self._database, doorbell.model, doorbell.lane, run_id, worker=self._worker, lease=self._limits.lease
                )
            except StoreUnavailable as error:
                if self._stop.is_set():
                    return None
                _log.warning("claim waits for the database", reason=error.message)
                await asyncio.sleep(retries.delay(1).total_seconds())

    async def _claim_many(self, wanted: list[tuple[JobId, UUID]]) -> Sequence[Claim | None]:
        found = await claims.claim_named(self._database, wanted, worker=self._worker, lease=self._limits.lease)
        return [found.get(run_id) for _, run_id in wanted]

    async def _ring_again(self, doorbell: Doorbell) -> None:
        """A permit lives on while there is work: the chunk that just ended makes room for another."""
        try:
            await self._bells.ring([doorbell])
        except BrokerUnavailable as error:
            _log.warning("permit not renewed, recovery will", reason=error.message)

    async def _execute(self, run: Run) -> None:
        """Run a claim to its end; however it ends, what is known is settled and the rest goes back."""
        writer = asyncio.create_task(self._write_while_running(run))
        try:
            rows = await self._prepare(run)
            while rows and not run.lost and not self._stop.is_set():
                await self._schedulers[run.claim.model].send(run, rows)
                rows = await self._reshaped(run, rows)
        except EngineError as error:
            run.last_code = error.code
            _log.warning("no endpoint", model=run.claim.model, reason=error.message, rows=len(run.left))
        except asyncio.CancelledError:
            if not run.lost and not self._stop.is_set():
                raise
        finally:
            run.end()
            await writer  # two reports of one chunk never travel in one write
            if run.lost:
                self._schedulers[run.claim.model].stored(row.answer_key for row in run.ready)
            else:
                await self._write(run, last=True)

    async def _prepare(self, run: Run) -> list[Row]:
        """Rows to be sent; those past their deadline, or unreadable, are settled here, and all when draining began."""
        if self._stop.is_set():
            return []
        jobs: list[tuple[ClaimedJob, Job]] = []
        for claimed in run.claim.jobs:
            try:
                job = parse_job(claimed.request)
            except InvalidJob as error:  # stored by another version of this program
                run.refuse(claimed.job_id, JobState.FAILED, error.code, error.message)
                continue
            if isinstance(job, StreamedJob) and job.stream:
                run.streamed.add(claimed.job_id)
            if run.past_deadline(claimed):
                run.expire(claimed.job_id)
            else:
                jobs.append((claimed, job))
        if not jobs:
            return []
        pool = self._pools[run.claim.model]
        facts = await pool.facts()
        entry = pool.entry
        context = min(facts.context_tokens or entry.context_tokens, entry.context_tokens)
        rows = []
        for claimed, job in jobs:
            words = kinds.label_words(job)
            form = await pool.form_for(words) if words else LabelForm.WHOLE_WORD
            target = kinds.Target(form, facts.constraint, context, entry.stop_token_ids, entry.system_prompt)
            try:
                ask = kinds.build(job, target)
            except Exception as error:  # noqa: BLE001 - a mistake of ours costs this one job, and the log names it
                _log.error(
                    "a job could not be turned into a request", job=claimed.job_id, kind=job.kind, fault=fault(error)
                )
                run.refuse(
                    claimed.job_id,
                    JobState.FAILED,
                    ErrorCode.OWN_FAULT,
                    f"a mistake in this program: {fault(error)}",
                )
                continue
            key = None
            if job.cache and ask.deterministic:
                key = answer_key(job.tenant, entry.name, facts.revision, facts.simulated, ask)
            rows.append(Row(run, claimed, job, ask, target, key, facts))
        # Rows that begin alike are neighbours: what the engine has read of one it need not read of the next.
        rows.sort(key=lambda row: (row.ask.shape.key, row.ask.conversation))
        return await self._unanswered(run, rows)

    async def _unanswered(self, run: Run, rows: list[Row]) -> list[Row]:
        """Rows that were not asked before; the others are settled with a copy."""
        keys = [row.key for row in rows if row.key is not None]
        if not keys:
            return rows
        try:
            found = await self._answers(keys)
        except StoreUnavailable as error:
            _log.warning("asking without looking for earlier answers", reason=error.message)
            return rows
        left = []
        for row in rows:
            original = found.get(row.key) if row.key is not None else None
            if original is None:
                left.append(row)
            else:
                run.copy(row, original)
        return left

    async def _look_up_answers(self, wanted: list[list[UUID]]) -> Sequence[dict[UUID, Original]]:
        found = await answer_cache.look_up(self._database, list({key for keys in wanted for key in keys}))
        return [{key: found[key] for key in keys if key in found} for keys in wanted]

    async def _reshaped(self, run: Run, rows: Sequence[Row]) -> list[Row]:
        """Rows that are worth asking again at once, in another way."""
        if not any(row.unread or row.too_long for row in rows):
            return []
        constraint = (await self._pools[run.claim.model].facts()).constraint
        again = [row.reshaped(constraint) for row in rows if row.claimed.job_id in run.left]
        return [row for row in again if row is not None]

    async def _write_while_running(self, run: Run) -> None:
        """Settle what is ready while the rest is under way: at once for somebody who waits, in bulk twice a second."""
        ended = asyncio.create_task(run.ended.wait())
        while not run.ended.is_set():
            await run.changed.wait()
            run.changed.clear()
            if run.claim.lane is Lane.BULK:
                await asyncio.wait({ended}, timeout=_BULK_WRITE_SECONDS)
            if run.left and not run.ended.is_set() and (run.ready or run.failures):
                await self._write(run, last=False)
        await ended

    async def _write(self, run: Run, *, last: bool) -> None:
        rows, failures = tuple(run.ready), tuple(run.failures)
        run.ready.clear()
        run.failures.clear()
        report = RunReport(run.claim.first_job_id, run.claim.fence, rows, failures)
        if last:
            report = self._last_report(run, report)
        held = await self._settle(report)
        self._schedulers[run.claim.model].stored(row.answer_key for row in rows)
        if not held:
            run.lost = True
            _log.warning("chunk was taken by others meanwhile", chunk=run.claim.first_job_id, rows=len(rows))
            return
        self._streams.end(row.job_id for row in rows if row.job_id in run.streamed)
        await self._whisper(run.claim.reply_to, [row.job_id for row in rows])

    def _last_report(self, run: Run, report: RunReport) -> RunReport:
        if not run.left:
            return replace(report, next_state=NextState.DONE)
        if self._stop.is_set() and run.last_code is None:
            return replace(report, next_state=NextState.QUEUED)
        delay = retries.delay(run.claim.rounds + 1)
        _log.info("chunk goes back for another try", chunk=report.first_job_id, rows=len(run.left), code=run.last_code)
        return replace(report, next_state=NextState.QUEUED, delay=delay, retry=True, code=run.last_code)

    async def _settle_many(self, reports: list[RunReport]) -> Sequence[bool]:
        """One statement for all that is ready in the process; while the database is away, results are kept and tried again."""
        while True:
            try:
                held = await settlement.settle(self._database, reports)
                return [(report.first_job_id, report.fence) in held for report in reports]
            except ValueRefused as error:
                if len(reports) > 1:
                    return [(await self._settle_many([report]))[0] for report in reports]
                _log.error("results cannot be stored", chunk=reports[0].first_job_id, reason=error.message)
                reports = [_without_answers(reports[0])]
            except StoreUnavailable as error:
                _log.warning("results wait for the database", reason=error.message, chunks=len(reports))
                await asyncio.sleep(_STORE_RETRY_SECONDS)

    async def _whisper(self, channel: str | None, job_ids: Sequence[JobId]) -> None:
        if channel is None or not job_ids:
            return
        try:
            await self._whispers.say(channel, job_ids)
        except BrokerUnavailable as error:
            _log.warning("waiting callers will find their results a moment later", reason=error.message)


def _without_answers(report: RunReport) -> RunReport:
    """The report with failures in place of results: better a dead letter with a reason than a chunk that goes round."""
    message = "the engine's answer holds something that cannot be stored"
    rows = [
        replace(row, state=JobState.FAILED, answer=None, answer_key=None, code=ErrorCode.VALUE_REFUSED, message=message)
        if row.state is JobState.SUCCEEDED
        else row
        for row in report.rows
    ]
    return replace(report, rows=rows)


__all__ = ["Limits", "Process"]
