"""Whose fault a failed request is. The engine's own sentence is not kept: it may repeat the prompt.

| what the engine did                   | whose         | error             | costs the job | costs the endpoint  |
|---------------------------------------|---------------|-------------------|---------------|---------------------|
| 400, 422 with a JSON object, 413      | the request's | RequestRejected   | it fails      | nothing             |
| 429, 503                              | load          | EngineOverloaded  | nothing       | a pause             |
| 408, no answer in time                | the attempt's | EngineTimeout     | an attempt    | open after three    |
| 5xx, connection cut, stream not ended | the attempt's | EngineFailed      | an attempt    | open after three    |
| any other status                      | the way's     | EndpointRefused   | nothing       | open                |
| no connection, no name, no trust      | the way's     | EngineUnavailable | nothing       | open                |
| nothing for long, and no probe either | the way's     | EngineUnavailable | nothing       | open                |

A status of the way that a probe does not get costs the job an attempt, see `EnginePool.judge`.
"""

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx
import orjson

from schemas.errors import (
    EndpointRefused,
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    PromptTooLong,
    RequestRejected,
)

_NAME = re.compile(r"[A-Za-z_. ]{1,60}")
_HOST = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,255}")
_TOO_LONG_PARAMETERS = {"input_tokens", "input_text"}
# vLLM before 0.1x reports it only as text.
_TOO_LONG_WORDS = "maximum context length"
_ABOUT_THE_REQUEST = {400, 422}


def from_status(status: int, headers: Mapping[str, str], body: bytes, endpoint: str) -> EngineError:
    """Return the error of a status other than 200 (recorded from vLLM 0.32 and 0.33)."""
    if status == 413 or (status in _ABOUT_THE_REQUEST and _is_object(body)):
        return _about_the_request(status, body, endpoint)
    if status in {429, 503}:
        return EngineOverloaded(f"{endpoint} accepts no more work for now (HTTP {status})", endpoint=endpoint)
    if status == 408:
        return EngineTimeout(f"{endpoint} timed out (HTTP 408)", endpoint=endpoint)
    if status >= 500:
        return EngineFailed(f"{endpoint} failed during the request (HTTP {status})", endpoint=endpoint)
    return EndpointRefused(f"{endpoint} {_about_the_way(status, headers)}", endpoint=endpoint)


def _about_the_way(status: int, headers: Mapping[str, str]) -> str:
    if 300 <= status < 400:
        host = _host_of(headers.get("location", ""))
        return f"redirects to {host or 'another path'} (HTTP {status}); name the address of the engine itself"
    if status in {401, 403}:
        return f"needs another API key (HTTP {status}); set AI_API_KEY"
    if status == 404:
        return "does not serve this model or route (HTTP 404)"
    return f"answers HTTP {status}, which is not an engine's; is something in between?"


def _host_of(location: str) -> str | None:
    """Return the host that a redirect names: its path may have a token, and its user a password."""
    try:
        host = urlsplit(location).netloc.rpartition("@")[2]
    except ValueError:
        return None
    return host if _HOST.fullmatch(host) else None


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


def _is_object(body: bytes) -> bool:
    """Whether an engine wrote this: proxies and gateways answer in HTML or with nothing."""
    try:
        return isinstance(orjson.loads(body), dict)
    except orjson.JSONDecodeError:
        return False


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
        raise EngineUnavailable(f"{endpoint} {_why_unconnected(error)}", endpoint=endpoint) from error
    except httpx.ConnectError as error:
        raise EngineUnavailable(f"{endpoint} {_why_unconnected(error)}", endpoint=endpoint) from error
    except httpx.TimeoutException as error:
        raise EngineTimeout(f"{endpoint} did not answer in time", endpoint=endpoint) from error
    except (httpx.RequestError, httpx.InvalidURL, aiohttp.ClientError, ConnectionError) as error:
        raise EngineFailed(f"{endpoint} cut the connection", endpoint=endpoint) from error


def _why_unconnected(error: BaseException) -> str:
    """Return why there is no connection: what an operator would do next differs."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, aiohttp.ClientConnectorCertificateError):
            found = found.certificate_error
        if isinstance(found, ssl.SSLCertVerificationError):
            reason = found.verify_message
            return f"shows a certificate that is not trusted ({reason}); SSL_CERT_FILE names a file of trusted ones"
        if isinstance(found, ssl.SSLError):
            return "does not speak TLS as its https address says; is it http?"
        if isinstance(found, aiohttp.ClientConnectorDNSError):
            return "has a host name that is not known here"
        found = found.__cause__ or found.__context__
    return "does not answer"


def _was_connected(cause: BaseException | None) -> bool:
    return isinstance(cause, aiohttp.ClientConnectionError) and not isinstance(
        cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError
    )
