"""What is known of a batch: OpenAI's eight statuses and counts, and what is ours."""

from datetime import UTC, datetime
from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from schemas.completions import UsageMode
from schemas.errors import ErrorCode
from schemas.ids import BatchId

_LAST_YEAR = 2200


class BatchStatus(StrEnum):
    """OpenAI's statuses. `failed`, `completed`, `expired` and `cancelled` are final."""

    VALIDATING = "validating"  # its whole file is checked first, nothing runs
    FAILED = "failed"  # the file was refused, nothing ran
    IN_PROGRESS = "in_progress"  # rows run or wait; also while its file is read
    FINALIZING = "finalizing"  # OpenAI prepares its files; ours need none, so it does not occur
    COMPLETED = "completed"  # every row has an outcome, failed ones too
    EXPIRED = "expired"  # its window ended before all rows had run
    CANCELLING = "cancelling"  # it was cancelled, requests in flight are aborted
    CANCELLED = "cancelled"  # it was cancelled before all rows had run

    @property
    def is_final(self) -> bool:
        """Whether nothing changes any more, unless rows are retried."""
        return self in {BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}


class RequestCounts(BaseModel):
    """Rows as OpenAI counts them; lines that are no jobs are failed ones."""

    model_config = ConfigDict(frozen=True)

    total: int
    completed: int
    failed: int


class BatchSettings(BaseModel):
    """How the rows of a batch are treated.

    Attributes:
        name: shown beside it.
        priority: of rows that name none; lower goes first.
        weight: of its share, compared with other batches of one priority.
        model: for all rows, whatever they name.
        cache: whether answers of earlier jobs are used.
        usage_mode: of rows in OpenAI's form that name none; see CompletionJob.
        sample: the share of lines that is taken, the same ones each time.
        canary: the share of rows that runs first; if too many of them fail, the batch pauses by itself.
        canary_limit: the share of failed rows of the canary that is still accepted.
        strict: whether the whole file is checked before anything runs.
        window_seconds: rows that did not run until then expire; None without an end.
        not_before: nothing runs earlier.
        tags: for the caller's own bookkeeping.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="batch", min_length=1, max_length=200)
    priority: int = Field(default=0, ge=-100, le=100)
    weight: int = Field(default=1, ge=1, le=1_000)
    model: str | None = Field(default=None, min_length=1, max_length=100)
    cache: bool = True
    usage_mode: UsageMode = UsageMode.EXACT
    sample: float | None = Field(default=None, gt=0, le=1)
    canary: float | None = Field(default=None, gt=0, lt=1)
    canary_limit: float = Field(default=0.05, ge=0, lt=1)
    strict: bool = False
    window_seconds: float | None = Field(default=None, ge=3_600, le=30 * 86_400)
    not_before: AwareDatetime | None = None
    tags: dict[str, str] = Field(default_factory=dict, max_length=16)

    @field_validator("not_before")
    @classmethod
    def _is_within_reach(cls, moment: datetime | None) -> datetime | None:
        if moment is not None and moment.astimezone(UTC).year > _LAST_YEAR:
            raise ValueError(f"is too far away; a batch may begin until the end of {_LAST_YEAR}")
        return moment


class BatchView(BaseModel):
    """A batch as it is now.

    Attributes:
        input_complete: whether its file was read to the end; until then its submitter adds rows.
        input_lines: lines that were read.
        input_waits_since: since when its submitter has added nothing; None once it is complete.
        refused: lines that are no jobs.
        cached: succeeded rows that were answered without an engine.
        running: rows that workers hold.
        canary: `running` while only the canary runs, then `passed` or `failed`; None without one.
        last_code: why rows wait for another attempt; None if none do.
        in_progress_at: when its first row began.
        finished_at: when its last row got its outcome; None while rows are open.
    """

    model_config = ConfigDict(frozen=True)

    batch_id: BatchId
    tenant: str
    name: str
    idempotency_key: str | None = None
    status: BatchStatus
    request_counts: RequestCounts
    jobs: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    refused: int
    cached: int
    running: int
    prompt_tokens: int
    completion_tokens: int
    canary: str | None = None
    last_code: ErrorCode | None = None
    input_complete: bool
    input_lines: int
    input_waits_since: datetime | None = None
    settings: BatchSettings
    created_at: datetime
    in_progress_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    cancelling_at: datetime | None = None
    failed_at: datetime | None = None
    paused_at: datetime | None = None
    paused_by: str | None = None
    pause_reason: str | None = None

    @property
    def settled(self) -> int:
        """Jobs that have an outcome."""
        return self.succeeded + self.failed + self.cancelled + self.expired

    @property
    def open(self) -> int:
        """Jobs that have none yet."""
        return max(0, self.jobs - self.settled)
