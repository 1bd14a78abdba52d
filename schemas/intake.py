"""The door for any system that speaks Celery: task `yyc3.submit` on queue `yyc3.intake`, answers as task `yyc3.reply`.

Keyword arguments of `yyc3.submit` are the fields of a job, and beside them `job_key` and `reply_to`; of `yyc3.cancel` they are
`job_key`, `tenant` and `reply_to`. The first is the one message that carries a caller's words, as the reply with the outcome is
the one that carries the answer: see docs/submitting.md.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import InvalidJob
from schemas.ids import JobId
from schemas.jobs import Job, parse_job
from schemas.results import JobError, Outcome

INTAKE_QUEUE = "yyc3.intake"
_RESERVED = ("yyc3.", "_kombu", "celery", "unacked", "amq.")  # ours, and those of Celery itself
SUBMIT_TASK = "yyc3.submit"
CANCEL_TASK = "yyc3.cancel"
REPLY_TASK = "yyc3.reply"
MAX_KEY_CHARACTERS = 200
QUEUE_PATTERN = r"^[A-Za-z0-9_.:-]{1,200}$"


@dataclass(frozen=True, slots=True)
class Intake:
    """A job as it came through the door.

    Attributes:
        job_key: the caller's name for it; the same key with the same job is the same job, however often it is sent.
        reply_to: the queue that gets the replies; None where nobody wants them.
    """

    job: Job
    job_key: str
    reply_to: str | None


class CancelArguments(BaseModel):
    """Keyword arguments of `yyc3.cancel`. The outcome comes to the queue that the job was submitted with.

    Attributes:
        job_key: of the job to be cancelled.
        tenant: as it was submitted.
        reply_to: the queue that hears if there is no such job.
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
    """Why a job was refused; with `queue_saturated`, after how many seconds the same one may be accepted."""

    retry_after_seconds: float | None = None


class RefusedReply(_Reply):
    """Nothing was stored; nothing follows. `job_key` is null where the message had none that can be used."""

    event: Literal["refused"] = "refused"
    error: RefusalError


class OutcomeReply(_Reply):
    """The job is settled. It may come twice, and then says the same."""

    event: Literal["outcome"] = "outcome"
    job_id: JobId
    outcome: Outcome


IntakeReply = Annotated[AcceptedReply | RefusedReply | OutcomeReply, Field(discriminator="event")]


def reply_queue(arguments: dict[str, Any], reserved: frozenset[str]) -> str | None:
    """The queue that replies go to.

    Raises:
        InvalidJob: it is no name of a queue, or one of ours.
    """
    queue = arguments.get("reply_to")
    if queue is None:
        return None
    if not isinstance(queue, str) or not re.fullmatch(QUEUE_PATTERN, queue):
        raise InvalidJob("job refused: reply_to: is no name of a queue; use letters, digits and _ . : -")
    if queue in reserved or queue.startswith(_RESERVED) or queue.endswith(".pidbox"):
        raise InvalidJob("job refused: reply_to: is a queue of this system; use one of your own")
    return queue


def job_key(arguments: dict[str, Any]) -> str:
    """The caller's name for the job.

    Raises:
        InvalidJob: there is none.
    """
    key = arguments.get("job_key")
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_CHARACTERS or "\x00" in key:
        raise InvalidJob(f"job refused: job_key: must be a text of 1 to {MAX_KEY_CHARACTERS} characters, without NUL")
    return key


def parse_intake(arguments: dict[str, Any], reserved: frozenset[str]) -> Intake:
    """The arguments of `yyc3.submit`.

    `reserved` are names of queues that no reply may go to.

    Raises:
        InvalidJob: one sentence that names the field.
    """
    queue, key = reply_queue(arguments, reserved), job_key(arguments)
    if "idempotency_key" in arguments:
        raise InvalidJob("job refused: idempotency_key: job_key is the idempotency key of this door; leave it out")
    fields = {name: value for name, value in arguments.items() if name not in {"job_key", "reply_to"}}
    return Intake(parse_job({**fields, "idempotency_key": key}), key, queue)


__all__ = [
    "CANCEL_TASK",
    "INTAKE_QUEUE",
    "QUEUE_PATTERN",
    "REPLY_TASK",
    "SUBMIT_TASK",
    "AcceptedReply",
    "CancelArguments",
    "Intake",
    "IntakeReply",
    "OutcomeReply",
    "RefusalError",
    "RefusedReply",
    "job_key",
    "parse_intake",
    "reply_queue",
]
