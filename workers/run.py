"""One worker's hold on a chunk: what is settled so far, what failed, and what is left."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline import kinds
from pipeline.engine.pool import Endpoint
from pipeline.kinds import Answer, Ask, Constraint, Target
from pipeline.models import LabelForm
from pipeline.retries import tried_enough
from pipeline.store.claims import Claim, ClaimedJob
from pipeline.store.settlement import FailedTry, SettledRow
from schemas.errors import EngineError, ErrorCode, PromptTooLong
from schemas.ids import JobId
from schemas.jobs import Job
from schemas.results import JobState, Result
from schemas.timings import Timings, Usage

_SHORTEST_CONTEXT_TOKENS = 128


@dataclass(slots=True)
class Row:
    """A row on its way through an engine.

    Attributes:
        unread: it was answered, and the answer could not be understood.
        too_long: the engine found its prompt too long, and less of the dialogue can be sent.
    """

    claimed: ClaimedJob
    job: Job
    ask: Ask
    target: Target
    sent_at: float = 0.0
    times_sent: int = 0
    unread: bool = False
    too_long: bool = False

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
        return Row(self.claimed, self.job, kinds.build(self.job, target), target, self.sent_at)

    @property
    def failed_tries(self) -> int:
        """Engine attempts that failed in earlier runs."""
        return self.claimed.failed_tries


@dataclass(frozen=True, slots=True)
class Asking:
    """A request that is under way, and whose rows it carries."""

    task: "asyncio.Task[Any]"
    job_ids: tuple[JobId, ...]


@dataclass(slots=True)
class Run:
    """A claim and what came of it.

    `ready` and `failures` wait for the next write; `left` are rows without an outcome, `streamed` those that somebody may
    be reading, `asking` the requests under way. `changed` is set when something is
    ready, and when the run has `ended`. Everything happens on one asyncio loop, so plain fields do.
    """

    claim: Claim
    started: float = field(default_factory=time.perf_counter)
    ready: list[SettledRow] = field(default_factory=list)
    failures: list[FailedTry] = field(default_factory=list)
    left: set[JobId] = field(default_factory=set)
    streamed: set[JobId] = field(default_factory=set)
    tries: dict[JobId, int] = field(default_factory=dict)
    asking: dict[JobId, Asking] = field(default_factory=dict)
    cancelled: int = 0
    last_code: ErrorCode | None = None
    lost: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    succeeded: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        self.left = {job.job_id for job in self.claim.jobs}
        self.tries = {job.job_id: job.failed_tries for job in self.claim.jobs}

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
            asking = self.asking.get(job_id)
            if asking is not None and not self.left.intersection(asking.job_ids):
                asking.task.cancel()

    def succeed(self, row: Row, result: Result, answer: Answer, endpoint: Endpoint) -> None:
        """An answer was understood; of a job that was cancelled meanwhile it is thrown away."""
        if row.claimed.job_id not in self.left:
            return
        self._settle(
            replace(
                self._settled_row(row, endpoint, answer),
                state=JobState.SUCCEEDED,
                answer=result.model_dump_json().encode(),
                usage=Usage(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens),
            )
        )
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
            self.failures.append(FailedTry(job_id, self.tries[job_id], error.code, url))
        if tried_enough(error, self.tries[job_id]):
            self._settle(replace(self._settled_row(row, endpoint, None), code=error.code, message=error.message))
            self.failed += 1

    def refuse(self, job_id: JobId, state: JobState, code: ErrorCode, message: str) -> None:
        """Settle a row that no engine is asked about."""
        self._settle(SettledRow(job_id=job_id, state=state, code=code, message=message, model=self.claim.model))
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
        facts = endpoint.facts if endpoint else None
        return SettledRow(
            job_id=row.claimed.job_id,
            state=JobState.FAILED,
            timings=self._timings(row, answer),
            tries=self.tries[row.claimed.job_id],
            model=self.claim.model,
            model_revision=facts.revision if facts else None,
            endpoint=endpoint.url if endpoint else None,
            engine_version=facts.version if facts else None,
            template_hash=row.ask.shape.template_hash,
            simulated=bool(facts and facts.simulated) or bool(answer and answer.simulated),
        )

    def _timings(self, row: Row, answer: Answer | None) -> Timings:
        waited = row.claimed.queue_wait_seconds
        sent = row.sent_at or time.perf_counter()
        return Timings(
            queue_wait_seconds=waited,
            batch_wait_seconds=sent - self.started,
            first_token_seconds=answer.first_token_seconds if answer else None,
            engine_seconds=answer.engine_seconds if answer else None,
            total_seconds=waited + time.perf_counter() - self.started,
        )


__all__ = ["Row", "Run"]
