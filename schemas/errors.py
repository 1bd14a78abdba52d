"""Every way a job or a call of ours can fail: one tree, one code each.

    PipelineError(code, retryable, facts as fields)
      ConfigurationError  UnknownModel InvalidSetting
      SubmissionError     InvalidJob DuplicateJob QueueSaturated InvalidCall
      BrokerError         BrokerUnavailable UndecodableMessage
      StoreError          StoreUnavailable ValueRefused JobNotFound
      EngineError         EngineUnavailable EngineOverloaded EngineTimeout EngineFailed
                          RequestRejected PromptTooLong InvalidOutput OwnFault
      ResultTimeout

A message is one sentence that names the thing and the way out. It never repeats a caller's words.
"""

import re
from enum import StrEnum
from typing import Any, ClassVar, Self

from pydantic import ValidationError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class ErrorCode(StrEnum):
    """What stands in `outcomes.code` and in every refusal.

    Attributes:
        meaning: what it says, as a clause.
    """

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Self:
        """A member with its meaning; the default is for the type checker, which takes `ErrorCode(value)` for this."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    UNKNOWN_MODEL = "unknown_model", "no entry of that name in models.toml, or it cannot do this kind"
    INVALID_SETTING = "invalid_setting", "an environment variable or a file of ours says something impossible"
    INVALID_JOB = "invalid_job", "refused at submit; the message names the field"
    DUPLICATE_JOB = "duplicate_job", "this idempotency key was used for another job"
    QUEUE_SATURATED = "queue_saturated", "too much is queued already; the message says when to submit again"
    INVALID_CALL = "invalid_call", "a line of a call file that is no call"
    BROKER_UNAVAILABLE = "broker_unavailable", "Redis or the message broker cannot be reached"
    UNDECODABLE_MESSAGE = "undecodable_message", "a queue message that is not ours"
    STORE_UNAVAILABLE = "store_unavailable", "Postgres cannot be reached"
    VALUE_REFUSED = "value_refused", "Postgres cannot store something in it"
    JOB_NOT_FOUND = "job_not_found", "no job of that id"
    ENGINE_UNAVAILABLE = "engine_unavailable", "nobody answers at the endpoint"
    ENGINE_OVERLOADED = "engine_overloaded", "the engine refuses more work for now (503, 429)"
    ENGINE_TIMEOUT = "engine_timeout", "no answer within the time limit"
    ENGINE_FAILED = "engine_failed", "the engine broke while it worked (5xx, connection cut)"
    REQUEST_REJECTED = "request_rejected", "the engine will not do this request (4xx), now or later"
    PROMPT_TOO_LONG = "prompt_too_long", "more tokens than the model's context"
    INVALID_OUTPUT = "invalid_output", "an answer outside what was asked for, empty or unreadable"
    OWN_FAULT = "own_fault", "a mistake in this program; the worker's log names it"
    WORKER_LOST = "worker_lost", "the worker that ran this job died; another takes it"
    CRASHED_WORKER = "crashed_worker", "every worker that ran this job alone died"
    DEADLINE_PASSED = "deadline_passed", "the job's own deadline came first"
    CANCELLED = "cancelled", "somebody cancelled it"
    RESULT_TIMEOUT = "result_timeout", "the caller stopped waiting; the job goes on"
    OTHER = "other", "a code of a newer version of this program"

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        return cls.OTHER if isinstance(value, str) else None


class PipelineError(Exception):
    """Root of all our errors.

    Attributes:
        code: stable, for programs.
        retryable: whether the same call may succeed later.
        facts: what a program may want to know (ids, field, line), never a caller's words.
    """

    code: ClassVar[ErrorCode]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts


class ConfigurationError(PipelineError):
    """Something on this side is set up wrong."""


class UnknownModel(ConfigurationError):
    """No such model, or one that cannot do this kind of job."""

    code = ErrorCode.UNKNOWN_MODEL


class InvalidSetting(ConfigurationError):
    """An environment variable, `.env` or models.toml says something impossible."""

    code = ErrorCode.INVALID_SETTING


class SubmissionError(PipelineError):
    """The caller's input is refused; nothing was stored."""


class InvalidJob(SubmissionError):
    """A field of a job is wrong; the message names it."""

    code = ErrorCode.INVALID_JOB


class DuplicateJob(SubmissionError):
    """The idempotency key belongs to a different job."""

    code = ErrorCode.DUPLICATE_JOB


class QueueSaturated(SubmissionError):
    """Too much is queued for a model, lane or tenant; nothing was stored. Facts: depth, limit, retry_after_seconds."""

    code = ErrorCode.QUEUE_SATURATED
    retryable = True


class InvalidCall(SubmissionError):
    """A line of a call file is not a call; the message names file and line."""

    code = ErrorCode.INVALID_CALL


class BrokerError(PipelineError):
    """Trouble with the message broker. No job is lost by it: jobs are rows."""


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached."""

    code = ErrorCode.BROKER_UNAVAILABLE
    retryable = True


class UndecodableMessage(BrokerError):
    """A message in one of our queues that we did not write."""

    code = ErrorCode.UNDECODABLE_MESSAGE


class StoreError(PipelineError):
    """Trouble with the database."""


class StoreUnavailable(StoreError):
    """No database; nothing is known to be written, call again."""

    code = ErrorCode.STORE_UNAVAILABLE
    retryable = True


class ValueRefused(StoreError):
    """Something cannot be stored, now or later; nothing was written."""

    code = ErrorCode.VALUE_REFUSED


class JobNotFound(StoreError):
    """No job of that id."""

    code = ErrorCode.JOB_NOT_FOUND


class EngineError(PipelineError):
    """One try at an engine failed.

    `counts` says whether the job used up a try: an engine that is away or full is not the job's fault.
    """

    counts: ClassVar[bool] = True


class EngineUnavailable(EngineError):
    """Nobody answers there."""

    code = ErrorCode.ENGINE_UNAVAILABLE
    retryable = True
    counts = False


class EngineOverloaded(EngineError):
    """The engine refuses more work for now."""

    code = ErrorCode.ENGINE_OVERLOADED
    retryable = True
    counts = False


class EngineTimeout(EngineError):
    """No answer within the time limit."""

    code = ErrorCode.ENGINE_TIMEOUT
    retryable = True


class EngineFailed(EngineError):
    """The engine broke while it worked."""

    code = ErrorCode.ENGINE_FAILED
    retryable = True


class RequestRejected(EngineError):
    """The engine will not do this request, now or later."""

    code = ErrorCode.REQUEST_REJECTED


class PromptTooLong(RequestRejected):
    """More tokens than the model's context."""

    code = ErrorCode.PROMPT_TOO_LONG


class InvalidOutput(EngineError):
    """The engine answered, but not what was asked for."""

    code = ErrorCode.INVALID_OUTPUT
    retryable = True


class OwnFault(EngineError):
    """A mistake of ours came up while a try was made. It counts, so that a job cannot go round for ever."""

    code = ErrorCode.OWN_FAULT
    retryable = True


class ResultTimeout(PipelineError):
    """The caller stopped waiting. The job goes on, and its result can be asked for later."""

    code = ErrorCode.RESULT_TIMEOUT
    retryable = True


def explain(error: ValidationError) -> str:
    """The first complaint of a validation as one clause, `field: reason`, without the value that was given."""
    first = error.errors(include_url=False, include_input=False)[0]
    # Discriminated unions put the tag ("intent") in front of the field; a person knows which kind they sent.
    parts = [_shown(part) for part in first["loc"]]
    if len(parts) > 1 and parts[0] in {"intent", "sentiment", "chat", "code", "vision"}:
        parts = parts[1:]
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_invalid":  # pydantic repeats what was given in place of a tag
        context = first.get("ctx", {})
        parts, reason = [str(context["discriminator"]).strip("'")], f"must be one of {context['expected_tags']}"
    field = ".".join(parts)
    return f"{field}: {reason}" if field else reason


def _shown(part: int | str) -> str:
    """A step of the way to a field. The name of an unknown field is the caller's: it is shown if it looks like a name."""
    text = str(part)
    return text if _NAME.fullmatch(text) else "(a field whose name cannot be shown)"


__all__ = [
    "BrokerError",
    "BrokerUnavailable",
    "ConfigurationError",
    "DuplicateJob",
    "EngineError",
    "EngineFailed",
    "EngineOverloaded",
    "EngineTimeout",
    "EngineUnavailable",
    "ErrorCode",
    "InvalidCall",
    "InvalidJob",
    "InvalidOutput",
    "InvalidSetting",
    "JobNotFound",
    "OwnFault",
    "PipelineError",
    "PromptTooLong",
    "QueueSaturated",
    "RequestRejected",
    "ResultTimeout",
    "StoreError",
    "StoreUnavailable",
    "SubmissionError",
    "UndecodableMessage",
    "UnknownModel",
    "ValueRefused",
    "explain",
]
