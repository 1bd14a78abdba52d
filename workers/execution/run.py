"""One worker's hold on a chunk: its rows, what is settled so far, what failed, and what is unsettled."""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from uuid import UUID

from pipeline import kinds
from pipeline.engine import Capabilities, Endpoint
from pipeline.kinds import Completion, CompletionRequest, EndpointProfile
from pipeline.policies.retries import is_final
from pipeline.store.answer_cache import CachedAnswer
from pipeline.store.claims import AGING_SECONDS, Claim, ClaimedJob
from pipeline.store.settlement import FailedAttempt, SettledRow
from schemas.errors import EngineError, ErrorCode, PromptTooLong
from schemas.ids import JobId
from schemas.job import Job
from schemas.jobs import UtteranceJob
from schemas.results import JobState, Result
from schemas.timings import Timings, Usage

_SHORTEST_CONTEXT_TOKENS = 128
_DEADLINE_PASSED = "its deadline passed before an engine was asked"


@dataclass(slots=True, eq=False)
class Row:
    """A row on its way through an engine.

    Attributes:
        key: names the question, if an equal question has the same answer and may reuse it; otherwise None.
        capabilities, revision: of the engine that the key was made for, see `EnginePool.revision_of`.
        group, priority, tenant, turn, sequence, tokens: see `row_queue.QueuedRow`.
        excluded: endpoints that failed it in this round.
        refusals: how often an endpoint accepted no more rows when this one came.
        followers: rows that ask the same and wait for the answer of this one.
        undecodable: whether it was answered with something that could not be decoded.
        too_long: whether the engine found its prompt too long, and less of the dialogue can be sent.
        on_finished: called at the end of the round.
    """

    run: "Run"
    claimed: ClaimedJob
    job: Job
    request: CompletionRequest
    profile: EndpointProfile
    key: UUID | None = None
    capabilities: Capabilities | None = None
    revision: str = ""
    group: Hashable = None
    priority: int = 0
    tenant: str = ""
    tokens: int = 0
    turn: int = 0
    sequence: int = 0
    sent_at: float = 0.0
    times_sent: int = 0
    refusals: int = 0
    excluded: tuple[str, ...] = ()
    followers: "list[Row]" = field(default_factory=list)
    in_request: "EngineRequest | None" = None
    on_finished: "Callable[[], None] | None" = None
    undecodable: bool = False
    too_long: bool = False

    def __post_init__(self) -> None:
        claim = self.run.claim
        self.priority = claim.priority - int(self.claimed.queue_wait_seconds // AGING_SECONDS)
        self.tokens, self.tenant = self.request.tokens, self.claimed.tenant
        # A row that failed before is sent alone: if it crashes its engine, it harms no other row.
        alone = self.request.template.free_text or self.run.attempts[self.job_id] > 0
        shared = (self.request.template.key, self.tenant, claim.batch_id, claim.priority)
        self.group = self.job_id if alone else shared

    @property
    def job_id(self) -> JobId:
        """Its job."""
        return self.claimed.job_id

    @property
    def is_pending(self) -> bool:
        """Whether an answer would still be used."""
        run = self.run
        return self.job_id in run.unsettled and not run.lost and not run.abandoned

    @property
    def can_be_shortened(self) -> bool:
        """Whether it is a dialogue or an utterance of which more can be left out."""
        return isinstance(self.job, UtteranceJob) and self.profile.max_model_len > _SHORTEST_CONTEXT_TOKENS

    def by_prefix(self) -> tuple[str, bytes]:
        """Sort key: rows that begin alike become neighbours, so that the engine reads their prefix once."""
        return self.request.template.key, self.request.conversation


@dataclass(slots=True, eq=False)
class EngineRequest:
    """Rows that are in flight together; `revision` names what answers them, `given_up` if its endpoint hangs."""

    rows: list[Row]
    endpoint: Endpoint
    capabilities: Capabilities | None
    revision: str = ""
    task: "asyncio.Task[None] | None" = None
    given_up: bool = False

    def cancel_if_unused(self) -> None:
        """Abort the request at the engine if no row of it is pending any more."""
        rows = (one for row in self.rows for one in (row, *row.followers))
        if self.task and not any(row.is_pending for row in rows):
            self.task.cancel()


@dataclass(slots=True)
class Run:
    """A claim and its progress.

    Everything happens on one asyncio loop, so plain fields suffice.

    Attributes:
        unwritten, failures: wait for the next write.
        unsettled: jobs without an outcome.
        streamed: jobs whose answer a reader may follow.
        rows: rows that go through an engine.
        cancelled: jobs of the chunk that were cancelled so far.
        lost: whether another worker has the chunk.
        abandoned: whether no answer is awaited any more.
        given_back: whether no more of its rows are sent: its batch is paused.
        changed: set when something is unwritten, and when the run has ended.
    """

    claim: Claim
    started: float = field(default_factory=time.perf_counter)
    unwritten: list[SettledRow] = field(default_factory=list)
    failures: list[FailedAttempt] = field(default_factory=list)
    unsettled: set[JobId] = field(default_factory=set)
    streamed: set[JobId] = field(default_factory=set)
    attempts: dict[JobId, int] = field(default_factory=dict)
    rows: dict[JobId, Row] = field(default_factory=dict)
    cancelled: int = 0
    last_code: ErrorCode | None = None
    lost: bool = False
    abandoned: bool = False
    given_back: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    failed: int = 0

    def __post_init__(self) -> None:
        self.unsettled = {job.job_id for job in self.claim.jobs}
        self.attempts = {job.job_id: job.failed_attempts for job in self.claim.jobs}

    @property
    def done_rows(self) -> int:
        """Rows of the chunk that have an outcome, from this run or an earlier one."""
        return self.claim.rows - len(self.unsettled)

    def past_deadline(self, job: ClaimedJob) -> bool:
        """Whether the deadline of a job has passed, or its batch has expired."""
        passed = time.perf_counter() - self.started
        ends = (job.seconds_to_deadline, self.claim.seconds_to_expiry)
        return any(seconds is not None and passed >= seconds for seconds in ends)

    def cancel(self, job_ids: Iterable[JobId]) -> None:
        """Drop jobs that have an outcome already, and abort requests that no other row needs."""
        for job_id in job_ids:
            if job_id not in self.unsettled:
                continue
            self.unsettled.discard(job_id)
            self.cancelled += 1
            row = self.rows.get(job_id)
            if row is None:
                continue
            if row.in_request is not None:
                row.in_request.cancel_if_unused()
            elif row.on_finished is not None:
                finished, row.on_finished = row.on_finished, None  # it may be far back in the queue: its round ends now
                finished()

    def give_back(self) -> None:
        """Send no more rows; those in flight end, the others go back to the queue with the chunk."""
        self.given_back = True
        for row in list(self.rows.values()):
            if row.in_request is None and row.on_finished is not None:
                finished, row.on_finished = row.on_finished, None
                finished()

    def succeed(self, row: Row, result: Result, completion: Completion, endpoint: Endpoint) -> CachedAnswer | None:
        """Settle a row with a result, unless it was cancelled; returns the answer for rows that ask the same."""
        if row.job_id not in self.unsettled:
            return None
        settled = self._settled_row(row, endpoint, completion)
        settled.answer = result.model_dump_json().encode()
        settled.cache_key = row.key if _same_engine(row, completion) else None
        settled.usage = Usage(prompt_tokens=completion.prompt_tokens, completion_tokens=completion.completion_tokens)
        measures = kinds.measures(result)
        settled.label, settled.confidence, settled.score = measures.label, measures.confidence, measures.score
        settled.state = JobState.SUCCEEDED
        self._settle(settled)
        if settled.cache_key is None:
            return None
        return CachedAnswer(**{name: getattr(settled, name) for name in CachedAnswer.__dataclass_fields__})

    def copy(self, row: Row, cached: CachedAnswer) -> None:
        """Settle a row with the answer of an earlier job: no engine is asked, no token is spent."""
        if row.job_id not in self.unsettled:
            return
        if cached.tenant != row.claimed.tenant:
            raise ValueError("an answer of another tenant")
        settled = self._settled_row(row, None, None)
        settled.usage = Usage(prompt_tokens=0, completion_tokens=0)
        settled.cached_from = cached.job_id
        for name in CachedAnswer.__dataclass_fields__:
            if name not in {"job_id", "tenant"}:
                setattr(settled, name, getattr(cached, name))
        settled.state = JobState.SUCCEEDED
        self._settle(settled)

    def fail_attempt(self, row: Row, error: EngineError, endpoint: Endpoint | None) -> None:
        """Record a failed attempt: the last one makes a dead letter, otherwise the job stays for another run."""
        if row.job_id not in self.unsettled:
            return
        if isinstance(error, PromptTooLong) and row.can_be_shortened:
            row.too_long = True
            return
        claimed, job_id = row.claimed, row.job_id
        self.last_code = error.code
        url = endpoint.url if endpoint else None
        if error.consumes_attempt:
            self.attempts[job_id] += 1
            self.failures.append(
                FailedAttempt(job_id, claimed.replay, claimed.tenant, self.attempts[job_id], error.code, url)
            )
        if is_final(error, self.attempts[job_id]):
            settled = self._settled_row(row, endpoint, None)
            settled.code, settled.message = error.code, error.message
            self._settle(settled)
            self.failed += 1

    def refuse(self, job: ClaimedJob, state: JobState, code: ErrorCode, message: str) -> None:
        """Settle a row that no engine is asked about."""
        known = (job.job_id, job.replay, job.tenant, job.kind, state)
        self._settle(SettledRow(*known, code=code, message=message, model=self.claim.model))
        self.failed += state is JobState.FAILED

    def expire(self, job: ClaimedJob) -> None:
        """Settle a row whose deadline passed before an engine was asked."""
        self.refuse(job, JobState.EXPIRED, ErrorCode.DEADLINE_PASSED, _DEADLINE_PASSED)

    def end(self) -> None:
        """Mark the end: no row is added any more."""
        self.ended.set()
        self.changed.set()

    def _settle(self, row: SettledRow) -> None:
        self.unsettled.discard(row.job_id)
        self.unwritten.append(row)
        self.changed.set()

    def _settled_row(self, row: Row, endpoint: Endpoint | None, completion: Completion | None) -> SettledRow:
        """Return what is known of a row in any case: which engine, how it was asked, how long it took. Its state is failed."""
        request, template = row.in_request, row.request.template
        engine = request.capabilities if request else None
        return SettledRow(
            job_id=row.job_id,
            replay=row.claimed.replay,
            tenant=row.claimed.tenant,
            kind=row.job.kind,
            state=JobState.FAILED,
            timings=self._timings(row, completion),
            attempts=self.attempts[row.job_id],
            model=self.claim.model,
            model_revision=engine.revision if engine else None,
            endpoint=endpoint.url if endpoint else None,
            engine_version=engine.version if engine else None,
            template_hash=template.template_hash,
            label_set_hash=template.label_set_hash,
            simulated=bool(engine and engine.simulated) or bool(completion and completion.simulated),
            batch_rows=len(request.rows) if request else None,
        )

    def _timings(self, row: Row, completion: Completion | None) -> Timings:
        waited, now = row.claimed.queue_wait_seconds, time.perf_counter()
        return Timings(
            queue_wait_seconds=waited,
            batch_wait_seconds=(row.sent_at or now) - self.started,
            first_token_seconds=completion.first_token_seconds if completion else None,
            engine_seconds=completion.engine_seconds if completion else None,
            total_seconds=waited + now - self.started,
        )


def _same_engine(row: Row, completion: Completion) -> bool:
    """Whether the engine that answered is still the one that the key of the question names."""
    request, expected = row.in_request, row.capabilities
    if request is None or request.capabilities is None or expected is None:
        return False
    simulated = expected.simulated or completion.simulated
    return (request.revision, request.capabilities.simulated) == (row.revision, simulated)
