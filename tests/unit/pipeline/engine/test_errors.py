"""Every foreign error and every HTTP status is translated to an error of ours."""

import inspect

import aiohttp
import httpx
import orjson
import pytest

from pipeline.engine import errors
from schemas.errors import (
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
        (501, {}, RequestRejected),
        (404, {"error": {"type": "NotFoundError", "param": "model"}}, EngineUnavailable),
        (401, {}, EngineUnavailable),
        (403, {}, EngineUnavailable),
        (400, {"error": {"message": "no", "type": "BadRequestError", "param": "temperature"}}, RequestRejected),
        (400, {"error": {"message": "no", "param": "input_tokens"}}, PromptTooLong),
        (400, {"error": {"message": "This model's maximum context length is 512"}}, PromptTooLong),
        (422, [], RequestRejected),
    ],
)
def test_every_status_has_its_error(status: int, body: object, expected: type[EngineError]) -> None:
    raw = body.encode() if isinstance(body, str) else orjson.dumps(body)
    error = errors.from_status(status, raw, "http://e")
    assert type(error) is expected
    assert error.retryable is not issubclass(expected, RequestRejected)
