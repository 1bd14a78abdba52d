"""The intake queue, for any system that uses Celery: task `yyc3.submit` on queue `yyc3.intake`, replies as `yyc3.reply`.

Keyword arguments of `yyc3.submit` are the fields of a job, and `job_key` and `reply_to`; of `yyc3.cancel`
they are `job_key`, `tenant` and `reply_to`. Only `yyc3.submit` has the words of a caller, and only the reply
with the outcome has the answer: see docs/submitting.md.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import InvalidJob
from schemas.ids import JobId
from schemas.job import Job, can_be_stored
from schemas.jobs import parse_job
from schemas.results import JobError, Outcome

INTAKE_QUEUE = "yyc3.intake"
_RESERVED = ("yyc3.", "_kombu", "celery", "unacked", "amq.")  # ours, and those of Celery itself
SUBMIT_TASK = "yyc3.submit"
CANCEL_TASK = "yyc3.cancel"
REPLY_TASK = "yyc3.reply"
MAX_KEY_CHARACTERS = 200
QUEUE_PATTERN = r"^[A-Za-z0-9_.:-]{1,200}$"


@dataclass(frozen=True, slots=True)
class IntakeRequest:
    """A job that arrived as a message.

    Attributes:
        job_key: the caller's name for it; the same key with the same job is the same job, however often it is sent.
        reply_to: the queue that gets the replies; None if no reply is wanted.
    """

    job: Job
    job_key: str
    reply_to: str | None


class CancelArguments(BaseModel):
    """Keyword arguments of `yyc3.cancel`. The outcome is sent to the queue that the job was submitted with.

    Attributes:
        job_key: of the job to cancel.
        tenant: of the job.
        reply_to: the queue that gets a reply if there is no such job.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_key: Annotated[str, Field(min_length=1, max_length=MAX_KEY_CHARACTERS)]
    tenant: str = Field(default="default", max_length=64)
    reply_to: Annotated[str, Field(pattern=QUEUE_PATTERN)] | None = None


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True)

    job_key: str | None


class AcceptedReply(_Reply):
    """The job is stored; its outcome follows."""

    event: Literal["accepted"] = "accepted"
    job_id: JobId


class RefusalError(JobError):
    """Why a job was refused; with `queue_saturated`, after how many seconds it may be accepted."""

    retry_after_seconds: float | None = None


class RefusedReply(_Reply):
    """Nothing was stored; no outcome follows. `job_key` is null if the message had no valid one."""

    event: Literal["refused"] = "refused"
    error: RefusalError


class OutcomeReply(_Reply):
    """The job is settled. It may be sent twice, with the same content."""

    event: Literal["outcome"] = "outcome"
    job_id: JobId
    outcome: Outcome


IntakeReply = Annotated[AcceptedReply | RefusedReply | OutcomeReply, Field(discriminator="event")]


def reply_queue(arguments: dict[str, Any], reserved: frozenset[str]) -> str | None:
    """Return the queue that replies go to.

    Raises:
        InvalidJob: it is not the name of a queue, or one of this system.
    """
    queue = arguments.get("reply_to")
    if queue is None:
        return None
    if not isinstance(queue, str) or not re.fullmatch(QUEUE_PATTERN, queue):
        raise InvalidJob("job refused: reply_to: is not the name of a queue; use letters, digits and _ . : -")
    if queue in reserved or queue.startswith(_RESERVED) or queue.endswith(".pidbox"):
        raise InvalidJob("job refused: reply_to: is a queue of this system; use one of your own")
    return queue


def job_key(arguments: dict[str, Any]) -> str:
    """Return the caller's name for the job.

    Raises:
        InvalidJob: there is none, or it is not valid.
    """
    key = arguments.get("job_key")
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_CHARACTERS or not can_be_stored(key):
        raise InvalidJob(
            f"job refused: job_key: must be a text of 1 to {MAX_KEY_CHARACTERS} characters, without NUL and half characters"
        )
    return key


def _moment(expires: Any) -> str:
    """Return Celery's `expires` as a deadline: after it no engine is asked, and the sender hears of it."""
    try:
        moment = datetime.fromisoformat(expires)
    except (TypeError, ValueError):
        raise InvalidJob(
            "job refused: expires: is not a time such as 2026-01-31T12:00:00+00:00; or use deadline"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()


def parse_intake(arguments: dict[str, Any], reserved: frozenset[str]) -> IntakeRequest:
    """Parse the arguments of `yyc3.submit`; `reserved` are queues that no reply may go to.

    Raises:
        InvalidJob: one sentence that names the field.
    """
    queue, key = reply_queue(arguments, reserved), job_key(arguments)
    if "idempotency_key" in arguments:
        raise InvalidJob("job refused: idempotency_key: use job_key, which is the idempotency key of this queue")
    if "eta" in arguments:
        raise InvalidJob(
            "job refused: eta: no message is held until later (eta, countdown); send it when the job should run"
        )
    fields = {name: value for name, value in arguments.items() if name not in {"job_key", "reply_to", "expires"}}
    if "expires" in arguments and fields.get("deadline") is None:
        fields["deadline"] = _moment(arguments["expires"])
    return IntakeRequest(parse_job({**fields, "idempotency_key": key}), key, queue)
