"""What can go wrong: one sentence for the person who starts it, one error body for the caller.

SimulatorError     the simulator cannot start or was told something it cannot use
RequestRejected    a request is answered with vLLM's error body
"""

from __future__ import annotations

from typing import Any


class SimulatorError(Exception):
    """A sentence for the person who started the simulator; it names the thing and the way out."""


class RequestRejected(Exception):  # noqa: N818 - says what happened to the request
    """A request that gets an error body instead of an answer.

    Attributes:
        status: the HTTP status; vLLM repeats it as `code`.
        message: text for a person.
        kind: vLLM's `type`: "BadRequestError" from its own checks, "Bad Request" from the schema checks before them.
        param: the field at fault, where vLLM names one.

    """

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param

    def body(self) -> dict[str, Any]:
        """The JSON body vLLM sends with this error."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}


_KINDS = {
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
    """A 400 of vLLM's own checks; `param` and `value` are repeated at the end of the message, as vLLM does."""
    if param is not None:
        suffix = f"parameter={param}" if value is None else f"parameter={param}, value={value}"
        message = f"{message} ({suffix})"
    return RequestRejected(400, message, "BadRequestError", param)


def by_status(status: int, message: str) -> RequestRejected:
    """An error with the `type` vLLM uses for this status."""
    return RequestRejected(status, message, _KINDS.get(status, "InternalServerError"))


def queue_overflow() -> RequestRejected:
    """The 503 of a server whose queue is at `--max-num-queued-reqs`."""
    return by_status(
        503,
        "The engine is currently busy and cannot accept new requests. "
        "Please try again later or on a different instance.",
    )


def engine_died() -> RequestRejected:
    """The 500 that callers in flight see when the engine process is gone."""
    return by_status(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")
