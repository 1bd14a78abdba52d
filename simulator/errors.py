"""Errors: one sentence for the person who starts the simulator, one error body for an HTTP caller.

SimulatorError     the simulator cannot start, or cannot use a value that it was given
RequestRejected    a request is answered with vLLM's error body
"""

from __future__ import annotations

from typing import Any


class SimulatorError(Exception):
    """One sentence for the person who starts the simulator: what is wrong, where, what to do."""


class RequestRejected(Exception):  # noqa: N818 - an outcome of a request, not a defect
    """A request that gets an error body instead of an answer.

    Attributes:
        status: the HTTP status; vLLM repeats it as `code`.
        message: text for a person.
        error_type: vLLM's `type`: "BadRequestError" from its own checks, "Bad Request" from the
            schema checks that run before them.
        param: the invalid field, where vLLM names one.

    """

    def __init__(
        self, status: int, message: str, error_type: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_type = error_type
        self.param = param

    def body(self) -> dict[str, Any]:
        """Build the JSON body that vLLM sends with this error."""
        return {"error": {"message": self.message, "type": self.error_type, "param": self.param, "code": self.status}}


_ERROR_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    501: "NotImplementedError",
    503: "Service Unavailable",
}


def bad_request(message: str, param: str | None = None, value: object = None) -> RequestRejected:
    """Build a 400 of vLLM's own checks.

    Like vLLM, the message repeats `param` and `value` at its end.
    """
    if param is not None:
        suffix = f"parameter={param}" if value is None else f"parameter={param}, value={value}"
        message = f"{message} ({suffix})"
    return RequestRejected(400, message, "BadRequestError", param)


def error_for_status(status: int, message: str) -> RequestRejected:
    """Build an error with the `type` that vLLM uses for this status."""
    return RequestRejected(status, message, _ERROR_TYPES.get(status, "InternalServerError"))


def queue_full_error() -> RequestRejected:
    """Build the 503 of a server that has reached `--max-num-queued-reqs`."""
    return error_for_status(
        503,
        "The engine is currently busy and cannot accept new requests. "
        "Please try again later or on a different instance.",
    )


def engine_dead_error() -> RequestRejected:
    """Build the 500 that callers with a request in flight get when the engine process has died."""
    return error_for_status(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")
