"""One worker's hold on a chunk: what is settled so far, what failed, and what is left."""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from uuid import UUID

from pipeline import kinds
from pipeline.engine import Endpoint, EndpointFacts
from pipeline.kinds import Answer, Ask, Constraint, Target
from pipeline.models import LabelForm
from pipeline.policies.retries import tried_enough
from pipeline.store.answer_cache import Original
from pipeline.store.claims import AGING_SECONDS, Claim, ClaimedJob
from pipeline.store.settlement import FailedTry, SettledRow
from schemas.errors import EngineError, ErrorCode, PromptTooLong
from schemas.ids import JobId
from schemas.jobs import Job
from schemas.results import JobState, Result
from schemas.timings import Timings, Usage

_SHORTEST_CONTEXT_TOKENS = 128


@dataclass(slots=True, eq=False)
class Row:
    """A row on its way through an engine.

    Attributes:
        key: names the question, where the same one has the same answer; None where it does not, or nobody wants that.
        facts: of the engine that the key was made for.
        urgency, group, tokens: see `batching.Waiting`.
        avoid: endpoints that failed it in this round.
        refused: times that an endpoint took no more rows when this one came.
        twins: rows that ask the same and wait for this one's answer.
        unread: it was answered, and the answer could not be understood.
        too_long: the engine found its prompt too long, and less of the dialogue can be sent.
    """

    run: "Run"
    claimed: ClaimedJob
    job: Job
    ask: Ask
    target: Target
    key: UUID | None = None
    facts: EndpointFacts | None = None
    group: Hashable = None
    urgency: int = 0
    tokens: int = 0
    place: int = 0
    sent_at: float = 0.0
    times_sent: int = 0
    refused: int = 0
    avoid: tuple[str, ...] = ()
    twins: "list[Row]" = field(default_factory=list)
    request: "Request | None" = None
    ended: "Callable[[], None] | None" = None
    unread: bool = False
    too_long: bool = False

    def __post_init__(self) -> None:
        claim = self.run.claim
        self.urgency = claim.priority - int(self.claimed.queue_wait_seconds // AGING_SECONDS)
        self.tokens = self.ask.tokens
        # A row that failed before goes alone: if it breaks its engine, it breaks it for nobody else.
        alone = self.ask.shape.streamed or self.run.tries[self.claimed.job_id] > 0
        self.group = self.claimed.job_id if alone else (self.ask.shape.key, claim.batch_id, claim.priority)

    @property
    def wanted(self) -> bool:
        """Whether an answer would still be of use."""
        run = self.run
        return self.claimed.job_id in run.left and not run.lost and not run.abandoned

    @property
    def can_be_shortened(self) -> bool:
        """Whether it is a dialogue of which more can be left out."""
        return getattr(self.job, "turns", None) is not None and self.target.context_tokens > _SHORTEST_CONTEXT_TOKENS

    def reshaped(self, constraint: Constraint) -> "Row | None":
        """The same row asked in another way, for at once; None where there is none.

        A constraint to words lets an engine begin with a piece of a character (seen on a real vLLM); a letter has no
        pieces. A dialogue that was too long loses more of its middle: tokenizers differ in how much fits.
        """
        if self.too_long:
            target = replace(self.target, constraint=constraint, context_tokens=self.target.context_tokens // 2)
        elif self.unread and self.target.form is LabelForm.WORD:
            target = replace(self.target, constraint=constraint, form=LabelForm.CODE)
        else:
            return None
        ask = kinds.build(self.job, target)
        key = None if self.too_long else self.key  # with less of the dialogue it is another question
        return Row(self.run, self.claimed, self.job, ask, target, key, self.facts, sent_at=self.sent_at)


@dataclass(slots=True, eq=False)
class Request:
    """Rows that are under way together."""

    rows: list[Row]
    endpoint: Endpoint
    facts: EndpointFacts | None
    task: "asyncio.Task[None] | None" = None

    def cancel_unwanted(self) -> None:
        """Hang up on the engine where nobody wants any of it any more."""
        rows = (one for row in self.rows for one in (row, *row.twins))
        if self.task is not None and not any(row.wanted for row in rows):
            self.task.cancel()


@dataclass(slots=True)
class Run:
    """A claim and what came of it.

    `ready` and `failures` wait for the next write; `left` are jobs without an outcome, `streamed` those that somebody may
    be reading, `rows` the rows that go through an engine. `changed` is set when something is ready, and when the run has
    `ended`; it is `lost` when another worker has the chunk, `abandoned` when its answers are waited for no longer. Everything
    happens on one asyncio loop, so plain fields do.
    """

    claim: Claim
    started: float = field(default_factory=time.perf_counter)
    ready: list[SettledRow] = field(default_factory=list)
    failures: list[FailedTry] = field(default_factory=list)
    left: set[JobId] = field(default_factory=set)
    streamed: set[JobId] = field(default_factory=set)
    tries: dict[JobId, int] = field(default_factory=dict)
    series: dict[JobId, int] = field(default_factory=dict)
    rows: dict[JobId, Row] = field(default_factory=dict)
    cancelled: int = 0
    last_code: ErrorCode | None = None
    lost: bool = False
    abandoned: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    succeeded: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        self.left = {job.job_id for job in self.claim.jobs}
        self.tries = {job.job_id: job.failed_tries for job in self.claim.jobs}
        self.series = {job.job_id: job.series for job in self.claim.jobs}

    @property
    def done_rows(self) -> int:
        """Rows of the chunk that have an outcome, from this run or a former one."""
        return self.claim.rows - len(self.left)

    def past_deadline(self, job: ClaimedJob) -> bool:
        """Whether a job's deadline has come."""
        left = job.seconds_to_deadline
        return left is not None and time.perf_counter() - self.started >= left

    def cancel(self, job_ids: Iterable[JobId]) -> None:
        """These have an outcome already: ask no engine, and hang up where nobody else's row is in the request."""
        for job_id in job_ids:
            if job_id not in self.left:
                continue
            self.left.discard(job_id)
            self.cancelled += 1
            row = self.rows.get(job_id)
            if row is None:
                continue
            if row.request is not None:
                row.request.cancel_unwanted()
            elif row.ended is not None:
                ended, row.ended = row.ended, None  # it may stand far behind in the line; nobody waits for that
                ended()

    def succeed(self, row: Row, result: Result, answer: Answer, endpoint: Endpoint) -> Original | None:
        """An answer was understood; returns what rows that ask the same get. Of a cancelled job it is thrown away."""
        if row.claimed.job_id not in self.left:
            return None
        settled = self._settled_row(row, endpoint, answer)
        settled.state = JobState.SUCCEEDED
        settled.answer = written = result.model_dump_json().encode()
        settled.answer_key = row.key if _as_expected(row, answer) else None
        settled.usage = Usage(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens)
        self._settle(settled)
        self.succeeded += 1
        if settled.answer_key is None:
            return None
        return Original(
            settled.job_id,
            written,
            settled.endpoint,
            settled.model_revision,
            settled.engine_version,
            settled.simulated,
        )

    def copy(self, row: Row, original: Original) -> None:
        """The same was asked and answered before: no engine is asked, no token is spent."""
        if row.claimed.job_id not in self.left:
            return
        settled = self._settled_row(row, None, None)
        settled.state = JobState.SUCCEEDED
        settled.answer = original.answer
        settled.usage = Usage(prompt_tokens=0, completion_tokens=0)
        settled.cached_from = original.job_id
        settled.endpoint = original.endpoint
        settled.model_revision = original.model_revision
        settled.engine_version = original.engine_version
        settled.simulated = original.simulated
        self._settle(settled)
        self.succeeded += 1

    def fail_try(self, row: Row, error: EngineError, endpoint: Endpoint | None) -> None:
        """A try failed: the job's last one makes a dead letter, otherwise it stays for another run."""
        if row.claimed.job_id not in self.left:
            return
        if isinstance(error, PromptTooLong) and row.can_be_shortened:
            row.too_long = True
            return
        job_id = row.claimed.job_id
        self.last_code = error.code
        url = endpoint.url if endpoint else None
        if error.counts:
            self.tries[job_id] += 1
            self.failures.append(FailedTry(job_id, row.claimed.series, self.tries[job_id], error.code, url))
        if tried_enough(error, self.tries[job_id]):
            settled = self._settled_row(row, endpoint, None)
            settled.code, settled.message = error.code, error.message
            self._settle(settled)
            self.failed += 1

    def refuse(self, job_id: JobId, state: JobState, code: ErrorCode, message: str) -> None:
        """Settle a row that no engine is asked about."""
        series = self.series[job_id]
        self._settle(SettledRow(job_id, series, state, code=code, message=message, model=self.claim.model))
        self.failed += state is JobState.FAILED

    def expire(self, job_id: JobId) -> None:
        """Settle a row whose deadline came before an engine was asked."""
        message = "its deadline had passed before an engine was asked"
        self.refuse(job_id, JobState.EXPIRED, ErrorCode.DEADLINE_PASSED, message)

    def _settle(self, row: SettledRow) -> None:
        self.left.discard(row.job_id)
        self.ready.append(row)
        self.changed.set()

    def end(self) -> None:
        """Nothing more comes."""
        self.ended.set()
        self.changed.set()

    def _settled_row(self, row: Row, endpoint: Endpoint | None, answer: Answer | None) -> SettledRow:
        """What is known of a row either way: who was asked, how, and how long it took. Failed until said otherwise."""
        facts = row.request.facts if row.request else None
        return SettledRow(
            job_id=row.claimed.job_id,
            series=row.claimed.series,
            state=JobState.FAILED,
            timings=self._timings(row, answer),
            tries=self.tries[row.claimed.job_id],
            model=self.claim.model,
            model_revision=facts.revision if facts else None,
            endpoint=endpoint.url if endpoint else None,
            engine_version=facts.version if facts else None,
            template_hash=row.ask.shape.template_hash,
            simulated=bool(facts and facts.simulated) or bool(answer and answer.simulated),
            batch_rows=len(row.request.rows) if row.request else None,
        )

    def _timings(self, row: Row, answer: Answer | None) -> Timings:
        waited, now = row.claimed.queue_wait_seconds, time.perf_counter()
        return Timings(
            queue_wait_seconds=waited,
            batch_wait_seconds=(row.sent_at or now) - self.started,
            first_token_seconds=answer.first_token_seconds if answer else None,
            engine_seconds=answer.engine_seconds if answer else None,
            total_seconds=waited + now - self.started,
        )


def _as_expected(row: Row, answer: Answer) -> bool:
    """Whether the engine that answered is still the one that the question's key names."""
    facts = row.request.facts if row.request else None
    if facts is None or row.facts is None:
        return False
    return (facts.revision, facts.simulated) == (row.facts.revision, row.facts.simulated or answer.simulated)


__all__ = ["Request", "Row", "Run"]
