"""Response bodies of an engine to completions: whole, malformed and missing."""

import orjson
import pytest

from pipeline.engine.responses import StreamedCompletion, parse_batch, parse_single
from pipeline.kinds import Completion, CompletionRequest, RequestTemplate
from schemas.errors import EngineFailed, InvalidOutput


def request(text: str) -> CompletionRequest:
    return CompletionRequest(RequestTemplate("s", (), {}, ""), ({"role": "user", "content": text},))


def choice(index: int, text: str, finish: str = "stop") -> dict[str, object]:
    return {"index": index, "message": {"content": text}, "finish_reason": finish, "logprobs": None}


def test_rows_of_a_batch_have_their_index_and_shares_of_usage_add_up() -> None:
    requests = [request("x" * size) for size in (10, 200, 33)]
    body = {
        "choices": [choice(2, "c"), choice(0, "a"), choice(1, "b")],
        "usage": {"prompt_tokens": 101, "completion_tokens": 7},
    }
    rows = parse_batch(orjson.dumps(body), requests, 0.5)
    completions = [row for row in rows if isinstance(row, Completion)]
    assert [completion.text for completion in completions] == ["a", "b", "c"]
    assert sum(completion.prompt_tokens or 0 for completion in completions) == 101
    assert sum(completion.completion_tokens or 0 for completion in completions) == 7
    assert (completions[1].prompt_tokens or 0) > (completions[0].prompt_tokens or 0)


def test_an_aborted_or_missing_row_fails_alone() -> None:
    requests = [request("x") for _ in range(3)]
    rows = parse_batch(orjson.dumps({"choices": [choice(0, "a"), choice(1, "b", "abort")]}), requests, 0.5)
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
def test_a_malformed_row_fails_alone_in_a_batch_and_single(choice: dict[str, object]) -> None:
    with pytest.raises(InvalidOutput):
        parse_single(orjson.dumps({"choices": [choice]}), 0.1)
    requests = [request("x") for _ in range(2)]
    good = {"index": 1, "message": {"content": "b"}}
    rows = parse_batch(orjson.dumps({"choices": [choice | {"index": 0}, good]}), requests, 0.1)
    assert isinstance(rows[0], InvalidOutput)
    assert isinstance(rows[1], Completion)


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": "many"}, {"prompt_tokens": 1.5}, {"completion_tokens": 2**40}, [1]]
)
def test_token_counts_that_are_not_counts_fail_the_attempt(usage: object) -> None:
    with pytest.raises(InvalidOutput):
        parse_single(orjson.dumps({"choices": [{"message": {"content": "a"}}], "usage": usage}), 0.1)


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[{}]}', b'{"choices":[3]}']
)
def test_a_body_that_is_not_a_chat_completion_fails_the_attempt(body: bytes) -> None:
    with pytest.raises(InvalidOutput):
        parse_single(body, 0.1)


def event(**delta: object) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def test_a_stream_yields_its_text_piece_by_piece_and_whole_at_its_end() -> None:
    completion = StreamedCompletion("http://e")
    assert (
        completion.feed([event(role="assistant", content=""), b"", event(content="好"), event(content="的")]) == "好的"
    )
    assert completion.feed([b": a comment", event(content="。"), b"data: [DONE]", event(content="late")]) == "。"
    assert completion.done
    assert completion.result(0.5, 0.1).text == "好的。"


def test_a_stream_without_its_end_was_cut() -> None:
    completion = StreamedCompletion("http://e")
    completion.feed([event(content="half")])
    with pytest.raises(EngineFailed, match="http://e cut the stream"):
        completion.result(0.5, 0.1)


def test_an_error_within_a_stream_fails_the_attempt() -> None:
    with pytest.raises(EngineFailed, match="http://e failed during the request"):
        StreamedCompletion("http://e").feed([b'data: {"error": {"message": "words of the prompt"}}'])
