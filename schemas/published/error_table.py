"""A table of all error codes, for docs/submitting.md."""

import re
from collections.abc import Iterator

from schemas.errors import ErrorCode, PipelineError

_AT_SUBMIT = "at submit: raised, or in a `refused` reply"
_IN_AN_OUTCOME = "in an outcome"
_WAITING = "while a job is queued: why its last attempt failed"
_IN_BOTH = f"{_IN_AN_OUTCOME}; {_WAITING}"
_WHERE = {
    ErrorCode.UNKNOWN_MODEL: _AT_SUBMIT,
    ErrorCode.INVALID_SETTING: "when a client or a command starts",
    ErrorCode.UNWRITABLE_FILE: "where a command writes a file",
    ErrorCode.INVALID_JOB: _AT_SUBMIT,
    ErrorCode.DUPLICATE_JOB: _AT_SUBMIT,
    ErrorCode.QUEUE_SATURATED: f"{_AT_SUBMIT}; both have `retry_after_seconds`",
    ErrorCode.INVALID_BATCH_FILE: "when a batch file is submitted",
    ErrorCode.INVALID_CALL: "in `yyc3 calls analyze`",
    ErrorCode.BROKER_UNAVAILABLE: "in `yyc3 queues`; a job can be submitted without Redis and broker",
    ErrorCode.UNDECODABLE_MESSAGE: "in the log of a worker",
    ErrorCode.STORE_UNAVAILABLE: "in any call; the intake queue waits instead",
    ErrorCode.UNSTORABLE_VALUE: _IN_AN_OUTCOME,
    ErrorCode.JOB_NOT_FOUND: "when a job is requested",
    ErrorCode.BATCH_NOT_FOUND: "when a batch is requested",
    ErrorCode.BATCH_TAKEN_OVER: "while a batch file is read",
    ErrorCode.ENGINE_UNAVAILABLE: f"{_WAITING}, as long as it takes",
    ErrorCode.ENGINE_OVERLOADED: f"{_WAITING}, as long as it takes",
    ErrorCode.ENGINE_TIMEOUT: _IN_BOTH,
    ErrorCode.ENGINE_FAILED: _IN_BOTH,
    ErrorCode.REQUEST_REJECTED: _IN_AN_OUTCOME,
    ErrorCode.PROMPT_TOO_LONG: _IN_AN_OUTCOME,
    ErrorCode.INVALID_OUTPUT: _IN_BOTH,
    ErrorCode.CONTENT_FILTERED: _IN_AN_OUTCOME,
    ErrorCode.INTERNAL_ERROR: f"{_IN_BOTH}; or in a `refused` reply",
    ErrorCode.NEWER_VERSION: f"{_WAITING}, for some minutes",
    ErrorCode.WORKER_LOST: _WAITING,
    ErrorCode.CRASHED_WORKER: _IN_AN_OUTCOME,
    ErrorCode.DEADLINE_PASSED: "in an outcome whose state is `expired`",
    ErrorCode.CANCELLED: "in an outcome whose state is `cancelled`",
    ErrorCode.RESULT_TIMEOUT: "when a caller stops waiting",
    ErrorCode.OTHER: "wherever this version reads what a newer one stored",
}
_TABLE = re.compile(r"(?<=<!-- error codes -->\n).*?(?=<!-- /error codes -->)", re.DOTALL)


def _classes(above: type[PipelineError] = PipelineError) -> Iterator[type[PipelineError]]:
    for cls in above.__subclasses__():
        yield cls
        yield from _classes(cls)


def error_table() -> str:
    """Return every code in a Markdown table; a code without an exception of its own is not retryable."""
    retryable = {cls.code for cls in _classes() if "code" in cls.__dict__ and cls.retryable}
    rows = [
        f"| `{code}` | {code.meaning} | {'yes' if code in retryable else 'no'} | {_WHERE[code]} |" for code in ErrorCode
    ]
    return "\n".join(["| code | meaning | retryable | where it occurs |", "|---|---|---|---|", *rows]) + "\n"


def with_error_table(text: str) -> str:
    """Return a Markdown document with the current table between its two markers."""
    return _TABLE.sub(lambda _: error_table(), text)
