"""Every foreign error and every HTTP status is translated to an error of ours."""

import inspect
import ssl

import aiohttp
import httpx
import orjson
import pytest

from pipeline.engine import errors
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

FOREIGN = [
    error
    for _, error in inspect.getmembers(httpx, inspect.isclass)
    if issubclass(error, httpx.RequestError) and error not in {httpx.RequestError, httpx.TransportError}
]


@pytest.mark.parametrize("error", FOREIGN, ids=lambda error: error.__name__)
def test_no_error_of_the_http_client_is_unmapped(error: type[httpx.RequestError]) -> None:
    with pytest.raises(EngineError) as raised, errors.translate_errors("http://e"):
        raise error("words of the prompt")
    assert raised.value.retryable
    assert "http://e" in raised.value.message
    assert "words" not in raised.value.message
    assert isinstance(raised.value.__cause__, error)


def test_a_broken_connection_is_a_failed_engine_one_never_made_an_absent_one() -> None:
    for cause, expected in (
        (aiohttp.ServerDisconnectedError(), EngineFailed),
        (aiohttp.ClientOSError(), EngineFailed),
        (aiohttp.ConnectionTimeoutError(), EngineUnavailable),
    ):
        with pytest.raises(expected), errors.translate_errors("http://e"):
            raise httpx.ConnectTimeout("x") from cause


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (503, {}, EngineOverloaded),
        (429, {}, EngineOverloaded),
        (408, {}, EngineTimeout),
        (500, {"error": {"message": "x", "type": "InternalServerError"}}, EngineFailed),
        (502, "<html>", EngineFailed),
        (501, {}, EngineFailed),
        (504, "", EngineFailed),
        (404, {"error": {"type": "NotFoundError", "param": "model"}}, EndpointRefused),
        *[
            (status, "<html>", EndpointRefused)
            for status in (301, 302, 303, 307, 308, 400, 401, 402, 403, 404, 405, 407)
        ],
        *[
            (status, {}, EndpointRefused)
            for status in (406, 409, 410, 411, 414, 415, 421, 425, 426, 428, 431, 451, 498)
        ],
        (204, "", EndpointRefused),
        (413, "<html>", RequestRejected),
        (400, {"error": {"message": "no", "type": "BadRequestError", "param": "temperature"}}, RequestRejected),
        (400, {"error": {"message": "no", "param": "input_tokens"}}, PromptTooLong),
        (400, {"error": {"message": "This model's maximum context length is 512"}}, PromptTooLong),
        (422, {"detail": []}, RequestRejected),
    ],
)
def test_every_status_has_its_error(status: int, body: object, expected: type[EngineError]) -> None:
    raw = body.encode() if isinstance(body, str) else orjson.dumps(body)
    error = errors.from_status(status, {}, raw, "http://e")
    assert type(error) is expected
    assert error.retryable is not issubclass(expected, RequestRejected)
    assert error.consumes_attempt is not issubclass(expected, EngineUnavailable | EngineOverloaded)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://login.example:8443/oauth?token=secret", "login.example:8443"),
        ("//user:secret@sso.example/secret", "sso.example"),
        ("/secret", "another path"),
        ("http://[", "another path"),
        ("http://secret secret/", "another path"),
        ("", "another path"),
    ],
)
def test_a_redirect_names_its_host_and_nothing_else(location: str, shown: str) -> None:
    message = errors.from_status(302, {"location": location}, b"", "http://e").message
    assert f"redirects to {shown} (HTTP 302)" in message
    assert "secret" not in message


def test_why_there_is_no_connection_is_said() -> None:
    expired = ssl.SSLCertVerificationError()
    expired.verify_message = "certificate has expired"
    for cause, words in (
        (expired, r"not trusted \(certificate has expired\); SSL_CERT_FILE"),
        (ssl.SSLError("wrong version number"), "does not speak TLS"),
    ):
        with pytest.raises(EngineUnavailable, match=words), errors.translate_errors("https://e"):
            raise httpx.ConnectError("x") from cause
