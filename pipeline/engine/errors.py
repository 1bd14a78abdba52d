"""Failures of an engine, translated. The engine's own sentence is not kept: it may repeat the prompt."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx
import orjson

from schemas.errors import (
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    PromptTooLong,
    RequestRejected,
)

_NAME = re.compile(r"[A-Za-z_. ]{1,60}")
_TOO_LONG_PARAMETERS = {"input_tokens", "input_text"}
# vLLM before 0.1x reports it only as text.
_TOO_LONG_WORDS = "maximum context length"


def from_status(status: int, body: bytes, endpoint: str) -> EngineError:
    """Return the error of a status other than 200 (recorded from vLLM 0.32 and 0.33).

    A 4xx about the request is final. One about the endpoint (key, model, route) is not the fault of the
    job and consumes no attempt.
    """
    if status in {429, 503}:
        return EngineOverloaded(f"{endpoint} accepts no more work for now (HTTP {status})", endpoint=endpoint)
    if status == 408:
        return EngineTimeout(f"{endpoint} timed out (HTTP 408)", endpoint=endpoint)
    if status in {401, 403}:
        return EngineUnavailable(f"{endpoint} needs another API key (HTTP {status}); set AI_API_KEY", endpoint=endpoint)
    if status == 404:
        return EngineUnavailable(
            f"{endpoint} does not serve this model or route any more (HTTP 404)", endpoint=endpoint
        )
    if status == 501 or status < 500:
        return _about_the_request(status, body, endpoint)
    return EngineFailed(f"{endpoint} failed during the request (HTTP {status})", endpoint=endpoint)


def _about_the_request(status: int, body: bytes, endpoint: str) -> EngineError:
    detail = _error_body(body)
    if detail.get("param") in _TOO_LONG_PARAMETERS or _TOO_LONG_WORDS in str(detail.get("message", "")):
        return PromptTooLong("the prompt has more tokens than the model reads; shorten it or choose another model")
    kind = _name(detail.get("type")) or "refused"
    parameter = f", parameter {name}" if (name := _name(detail.get("param"))) else ""
    return RequestRejected(f"{endpoint} refused the request: HTTP {status} {kind}{parameter}", endpoint=endpoint)


def _name(value: Any) -> str | None:
    """Return what looks like the name of an error or a parameter; anything else may be the words of the caller."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else None


def _error_body(body: bytes) -> dict[str, Any]:
    try:
        detail = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    found = detail.get("error") if isinstance(detail, dict) else None
    return found if isinstance(found, dict) else {}


@contextmanager
def translate_errors(endpoint: str) -> Iterator[None]:
    """Translate exceptions of the HTTP client.

    The aiohttp transport reports every broken connection as a connect timeout; its cause shows whether
    a connection was ever made.
    """
    try:
        yield
    except TimeoutError as error:
        raise EngineTimeout(f"{endpoint} did not answer in time", endpoint=endpoint) from error
    except httpx.ConnectTimeout as error:
        if _was_connected(error.__cause__):
            raise EngineFailed(f"{endpoint} cut the connection", endpoint=endpoint) from error
        raise EngineUnavailable(f"{endpoint} does not answer", endpoint=endpoint) from error
    except httpx.ConnectError as error:
        raise EngineUnavailable(f"{endpoint} does not answer", endpoint=endpoint) from error
    except httpx.TimeoutException as error:
        raise EngineTimeout(f"{endpoint} did not answer in time", endpoint=endpoint) from error
    except (httpx.RequestError, httpx.InvalidURL, aiohttp.ClientError, ConnectionError) as error:
        raise EngineFailed(f"{endpoint} cut the connection", endpoint=endpoint) from error


def _was_connected(cause: BaseException | None) -> bool:
    return isinstance(cause, aiohttp.ClientConnectionError) and not isinstance(
        cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError
    )
