"""What every job has, whatever its kind."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, field_validator

Tag = Annotated[str, StringConstraints(min_length=1, max_length=200)]
TENANT_PATTERN = r"^[A-Za-z0-9_.-]{1,64}$"
DEFAULT_TENANT = "default"
MIN_PRIORITY = -100
_FIRST_MOMENT = datetime(2000, 1, 1, tzinfo=UTC)  # a number of seconds from now would be one of 1970
Tenant = Annotated[str, StringConstraints(pattern=TENANT_PATTERN)]


class Job(BaseModel):
    """What every job has, whatever its kind.

    Attributes:
        idempotency_key: the same key with the same job returns that job, whatever its deadline and priority were; with another
            job it is refused.
        tenant: a label to count by; keys are unique within it.
        priority: lower goes first, like vLLM's; 0 is normal.
        deadline: after this time the job is `expired` and no engine is asked.
        tags: for the caller's own bookkeeping; stored, never interpreted.
        model: an entry of models.toml; by default the first one that supports this kind.
        cache: whether the answer of an earlier job that asked the same may be reused; only for jobs without randomness
            (intent, sentiment, and temperature 0), and within the tenant.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    idempotency_key: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    tenant: Tenant = DEFAULT_TENANT
    priority: int = Field(default=0, ge=MIN_PRIORITY, le=-MIN_PRIORITY)
    deadline: AwareDatetime | None = None
    tags: dict[Tag, Tag] = Field(default_factory=dict, max_length=16)
    model: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = None
    cache: bool = True

    @property
    def wanted_model(self) -> str | None:
        """The model that it names, if it names one."""
        return self.model

    @property
    def wanted_tokens(self) -> int | None:
        """Most tokens of the answer; None without a limit of the caller."""
        return None

    @property
    def image_urls(self) -> Mapping[str, str]:
        """Its images, data URLs or others, by the fields that have them."""
        return {}

    def with_image_urls(self, urls: Mapping[str, str]) -> Self:
        """Return the job with other images in these fields."""
        raise ValueError(f"a job of kind {self.kind} has no images, {len(urls)} were given")

    @field_validator("deadline")
    @classmethod
    def _in_utc(cls, deadline: datetime | None) -> datetime | None:
        """Databases know fewer offsets than clocks have."""
        try:
            found = None if deadline is None else deadline.astimezone(UTC)
        except OverflowError:
            raise ValueError("is too far away for a date") from None
        if found is not None and found < _FIRST_MOMENT:
            raise ValueError("is no moment of these years: write a time such as 2026-11-22T03:00+08:00, not seconds")
        return found


def can_be_stored(text: str) -> bool:
    """Whether Postgres keeps a text: NUL and half characters it does not."""
    try:
        return b"\x00" not in text.encode()
    except UnicodeEncodeError:
        return False
