"""Every foreign error has a name of ours, and answers of every shape are read."""

import inspect

import aiohttp
import httpx
import orjson
import pytest

from pipeline.engine import errors, responses
from pipeline.kinds import Completion, CompletionRequest, RequestTemplate
from schemas.errors import (
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    InvalidOutput,
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


def test_a_connection_that_was_made_and_broke_is_a_failed_engine_and_one_never_made_an_absent_one() -> None:
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


def choice(index: int, text: str, finish: str = "stop") -> dict[str, object]:
    return {"index": index, "message": {"content": text}, "finish_reason": finish, "logprobs": None}


def test_rows_of_a_batch_are_found_by_their_index_and_shares_of_usage_add_up() -> None:
    asks = [
        CompletionRequest(RequestTemplate("s", (), {}, ""), ({"role": "user", "content": "x" * size},))
        for size in (10, 200, 33)
    ]
    body = {
        "choices": [choice(2, "c"), choice(0, "a"), choice(1, "b")],
        "usage": {"prompt_tokens": 101, "completion_tokens": 7},
    }
    rows = responses.read_batch(orjson.dumps(body), asks, 0.5)
    answers = [row for row in rows if isinstance(row, Completion)]
    assert [answer.text for answer in answers] == ["a", "b", "c"]
    assert sum(answer.prompt_tokens or 0 for answer in answers) == 101
    assert sum(answer.completion_tokens or 0 for answer in answers) == 7
    assert (answers[1].prompt_tokens or 0) > (answers[0].prompt_tokens or 0)


def test_an_aborted_or_missing_row_fails_alone() -> None:
    asks = [CompletionRequest(RequestTemplate("s", (), {}, ""), ({"role": "user", "content": "x"},)) for _ in range(3)]
    rows = responses.read_batch(orjson.dumps({"choices": [choice(0, "a"), choice(1, "b", "abort")]}), asks, 0.5)
    assert isinstance(rows[0], Completion)
    assert isinstance(rows[1], EngineFailed)
    assert isinstance(rows[2], InvalidOutput)


BROKEN_CHOICES = [
    {"message": {"content": ["list"]}},
    {"message": {"content": "a\x00b"}},
    {"message": {"content": "a"}, "logprobs": {"content": [{"token": "a", "logprob": "low"}]}},
    {"message": {"content": "a"}, "logprobs": {"content": [3]}},
    {"message": None},
]


@pytest.mark.parametrize("choice", BROKEN_CHOICES)
def test_a_malformed_row_fails_alone_in_a_batch_and_is_a_failed_try_alone(choice: dict[str, object]) -> None:
    with pytest.raises(InvalidOutput):
        responses.read_single(orjson.dumps({"choices": [choice]}), 0.1)
    asks = [CompletionRequest(RequestTemplate("s", (), {}, ""), ({"role": "user", "content": "x"},)) for _ in range(2)]
    good = {"index": 1, "message": {"content": "b"}}
    rows = responses.read_batch(orjson.dumps({"choices": [choice | {"index": 0}, good]}), asks, 0.1)
    assert isinstance(rows[0], InvalidOutput)
    assert isinstance(rows[1], Completion)


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": "many"}, {"prompt_tokens": 1.5}, {"completion_tokens": 2**40}, [1]]
)
def test_token_counts_that_are_none_fail_the_try(usage: object) -> None:
    with pytest.raises(InvalidOutput):
        responses.read_single(orjson.dumps({"choices": [{"message": {"content": "a"}}], "usage": usage}), 0.1)


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[{}]}', b'{"choices":[3]}']
)
def test_an_answer_that_is_none_is_a_failed_try(body: bytes) -> None:
    with pytest.raises(InvalidOutput):
        responses.read_single(body, 0.1)
