"""Every way in which a job or a call can fail: one tree, one code each.

    PipelineError(code, retryable, facts as fields)
      ConfigurationError  UnknownModel InvalidSetting UnwritableFile
      SubmissionError     InvalidJob DuplicateJob QueueSaturated InvalidBatchFile InvalidCall
      BrokerError         BrokerUnavailable
      StoreError          StoreUnavailable UnstorableValue JobNotFound BatchNotFound BatchTakenOver
      EngineError         EngineUnavailable EndpointRefused EngineOverloaded EngineTimeout EngineFailed
                          RequestRejected PromptTooLong InvalidOutput OnlyReasoning AnswerFiltered InternalError
      ResultTimeout

A message is one sentence that names the subject and the way out. It never repeats the words of a caller.
"""

from enum import StrEnum
from typing import Any, ClassVar, Self


class ErrorCode(StrEnum):
    """The value of `outcomes.code` and of every refusal.

    Attributes:
        meaning: its explanation, as a clause.
    """

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Self:
        """Make a member with its meaning; the default is for the type checker, which reads `ErrorCode(value)` as this."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    UNKNOWN_MODEL = "unknown_model", "no entry of that name in models.toml, or it does not support this kind"
    INVALID_SETTING = "invalid_setting", "an environment variable or a configuration file has an invalid value"
    UNWRITABLE_FILE = "unwritable_file", "a file of results cannot be written; the message names it"
    INVALID_JOB = "invalid_job", "refused at submit; the message names the field"
    DUPLICATE_JOB = "duplicate_job", "this idempotency key was used for another job"
    QUEUE_SATURATED = "queue_saturated", "the queue is full; the message says when to submit again"
    INVALID_BATCH_FILE = "invalid_batch_file", "a batch file cannot be read, or strict checking refused it"
    INVALID_CALL = "invalid_call", "a call file cannot be read, or one of its lines is not a call"
    BROKER_UNAVAILABLE = "broker_unavailable", "Redis or the message broker cannot be reached"
    UNDECODABLE_MESSAGE = "undecodable_message", "a queue message that cannot be processed"
    STORE_UNAVAILABLE = "store_unavailable", "Postgres cannot be reached"
    UNSTORABLE_VALUE = "unstorable_value", "Postgres cannot store one of its values"
    JOB_NOT_FOUND = "job_not_found", "no job with that id"
    BATCH_NOT_FOUND = "batch_not_found", "no batch with that id"
    BATCH_TAKEN_OVER = "batch_taken_over", "another process reads the file of this batch, or it was cancelled"
    ENGINE_UNAVAILABLE = (
        "engine_unavailable",
        "the endpoint does not answer, or answers something that is not about the job",
    )
    ENGINE_OVERLOADED = "engine_overloaded", "the engine accepts no more work for now (503, 429)"
    ENGINE_TIMEOUT = "engine_timeout", "no answer within the time limit"
    ENGINE_FAILED = "engine_failed", "the engine failed during the request (5xx, connection cut)"
    REQUEST_REJECTED = "request_rejected", "the engine refuses this request (400, 413, 422), now and later"
    PROMPT_TOO_LONG = "prompt_too_long", "the prompt has more tokens than the model reads"
    INVALID_OUTPUT = "invalid_output", "the answer is not what was asked for, is empty or unreadable"
    CONTENT_FILTERED = "content_filtered", "a filter of the engine cut the answer off"
    INTERNAL_ERROR = "internal_error", "a bug in this program; the log of the worker names it"
    NEWER_VERSION = "newer_version", "stored by another version of this program; it waits for a worker of that version"
    WORKER_LOST = "worker_lost", "the worker that ran this job was lost; another one runs it"
    CRASHED_WORKER = "crashed_worker", "every worker that ran this job alone was lost"
    DEADLINE_PASSED = "deadline_passed", "the deadline of the job passed first"
    CANCELLED = "cancelled", "a caller cancelled the job"
    RESULT_TIMEOUT = "result_timeout", "the caller stopped waiting; the job continues"
    OTHER = "other", "a code of a newer version of this program"

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        return cls.OTHER if isinstance(value, str) else None


class PipelineError(Exception):
    """Root of all our errors.

    Attributes:
        code: stable, for programs.
        retryable: whether the same call may succeed later.
        facts: ids, field, line and the like, for programs; never the words of a caller.
    """

    code: ClassVar[ErrorCode]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts


class ConfigurationError(PipelineError):
    """The configuration of this side is wrong."""


class UnknownModel(ConfigurationError):
    """There is no such model, or it does not support this kind of job."""

    code = ErrorCode.UNKNOWN_MODEL


class InvalidSetting(ConfigurationError):
    """An environment variable, `.env` or models.toml has an invalid value."""

    code = ErrorCode.INVALID_SETTING


class UnwritableFile(ConfigurationError):
    """A file that results should go to cannot be written; what was there stays."""

    code = ErrorCode.UNWRITABLE_FILE


class SubmissionError(PipelineError):
    """The caller's input is refused; nothing was stored."""


class InvalidJob(SubmissionError):
    """A field of a job is wrong; the message names it."""

    code = ErrorCode.INVALID_JOB


class DuplicateJob(SubmissionError):
    """The idempotency key belongs to a different job."""

    code = ErrorCode.DUPLICATE_JOB


class QueueSaturated(SubmissionError):
    """The queue of a model, lane or tenant is full; nothing was stored. Facts: queue, depth, limit, retry_after_seconds."""

    code = ErrorCode.QUEUE_SATURATED
    retryable = True


class InvalidBatchFile(SubmissionError):
    """A batch file cannot be read to its end, or was refused as a whole; the message names it. Facts: batch_id."""

    code = ErrorCode.INVALID_BATCH_FILE


class InvalidCall(SubmissionError):
    """A call file cannot be read, or a line is not a call; the message names the file."""

    code = ErrorCode.INVALID_CALL


class BrokerError(PipelineError):
    """A problem with the message broker. No job is lost: jobs are rows."""


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached."""

    code = ErrorCode.BROKER_UNAVAILABLE
    retryable = True


class StoreError(PipelineError):
    """A problem with the database."""


class StoreUnavailable(StoreError):
    """No database; nothing is known to be written, call again."""

    code = ErrorCode.STORE_UNAVAILABLE
    retryable = True


class UnstorableValue(StoreError):
    """A value cannot be stored, now or later; nothing was written."""

    code = ErrorCode.UNSTORABLE_VALUE


class JobNotFound(StoreError):
    """There is no job with that id."""

    code = ErrorCode.JOB_NOT_FOUND


class BatchNotFound(StoreError):
    """There is no batch with that id."""

    code = ErrorCode.BATCH_NOT_FOUND


class BatchTakenOver(StoreError):
    """Another process reads the file of this batch meanwhile, or the batch was cancelled; nothing was stored."""

    code = ErrorCode.BATCH_TAKEN_OVER


class EngineError(PipelineError):
    """One engine attempt failed.

    `consumes_attempt` says whether it counts against the job: an unavailable or overloaded engine is not
    the fault of the job.
    """

    consumes_attempt: ClassVar[bool] = True


class EngineUnavailable(EngineError):
    """The endpoint does not answer."""

    code = ErrorCode.ENGINE_UNAVAILABLE
    retryable = True
    consumes_attempt = False


class EndpointRefused(EngineUnavailable):
    """It answers, but with a status about itself or the way to it: a redirect, a key, a missing route.

    Whether the request is the reason after all is known when the endpoint was probed with another one.
    """


class EngineOverloaded(EngineError):
    """The engine accepts no more work for now."""

    code = ErrorCode.ENGINE_OVERLOADED
    retryable = True
    consumes_attempt = False


class EngineTimeout(EngineError):
    """The engine did not answer within the time limit."""

    code = ErrorCode.ENGINE_TIMEOUT
    retryable = True


class EngineFailed(EngineError):
    """The engine failed during the request."""

    code = ErrorCode.ENGINE_FAILED
    retryable = True


class RequestRejected(EngineError):
    """The engine refuses this request, now and later."""

    code = ErrorCode.REQUEST_REJECTED


class PromptTooLong(RequestRejected):
    """The prompt has more tokens than the model reads."""

    code = ErrorCode.PROMPT_TOO_LONG


class InvalidOutput(EngineError):
    """The engine answered, but not what was asked for."""

    code = ErrorCode.INVALID_OUTPUT
    retryable = True


class OnlyReasoning(InvalidOutput):
    """All tokens went into reasoning: asked again, the model would do the same."""

    retryable = False


class AnswerFiltered(EngineError):
    """A filter of the engine cut the answer off, now and later."""

    code = ErrorCode.CONTENT_FILTERED


class InternalError(EngineError):
    """Our own code failed during an attempt. It counts, so that a job cannot be retried without end."""

    code = ErrorCode.INTERNAL_ERROR
    retryable = True


class ResultTimeout(PipelineError):
    """The caller stopped waiting. The job continues, and its result can be requested later."""

    code = ErrorCode.RESULT_TIMEOUT
    retryable = True
