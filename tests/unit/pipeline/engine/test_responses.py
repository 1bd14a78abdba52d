"""Response bodies of an engine to completions: whole, malformed and missing."""

import json
from collections.abc import Callable

import orjson
import pytest

from pipeline.engine.responses import StreamedCompletion, parse_batch, parse_single
from pipeline.kinds import Completion, CompletionRequest, RequestTemplate
from schemas.errors import AnswerFiltered, EngineError, EngineFailed, InvalidOutput


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
    {"message": {"content": "a"}, "finish_reason": 3},
    {"message": {"content": "a"}, "finish_reason": "because"},
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


COUNTS = [
    {"prompt_tokens": "many"},
    {"prompt_tokens": 1.5},
    {"prompt_tokens": 5.0},
    {"completion_tokens": 2**40},
    [1],
    3,
]


@pytest.mark.parametrize("usage", [*COUNTS, {"prompt_tokens": -1}, {"prompt_tokens": True}, "none", None])
def test_counts_that_are_not_counts_do_not_cost_the_answer(usage: object) -> None:
    found = parse_single(orjson.dumps({"choices": [{"message": {"content": "a"}}], "usage": usage}), 0.1)
    assert (found.text, found.prompt_tokens, found.completion_tokens) == ("a", None, None)
    (row,) = parse_batch(orjson.dumps({"choices": [choice(0, "a")], "usage": usage}), [request("x")], 0.1)
    assert isinstance(row, Completion)
    streamed = StreamedCompletion("http://e")
    streamed.feed(
        event(content="a") + b"data: " + orjson.dumps({"choices": [], "usage": usage}) + b"\n\ndata: [DONE]\n\n"
    )
    whole = streamed.result(0.1, None)
    assert (whole.text, whole.prompt_tokens, whole.completion_tokens) == ("a", None, None)


@pytest.mark.parametrize("bad", [None, "low", True, float("nan"), float("-inf"), 0.7, [], -(10**400)])
def test_an_alternative_without_a_number_is_left_out(bad: object) -> None:
    good = {"token": "退", "logprob": -0.1}
    odd = [{"token": "查", "logprob": bad}, {"token": 3, "logprob": -1.0}, {"logprob": -1.0}, 7, None]
    logprobs = {"content": [{**good, "top_logprobs": [*odd, {"token": "转", "logprob": 0.000001}]}]}
    body = json.dumps({"choices": [{"message": {"content": "退"}, "logprobs": logprobs}]}).encode()
    found = parse_single(body, 0.1)
    assert [token for token, _ in found.first_token] == ["退", "转"]
    assert found.completion_tokens == 1


@pytest.mark.parametrize("logprobs", [3, [], {"content": 3}, {"content": [3]}, {"content": [{"top_logprobs": 3}]}])
def test_log_probabilities_of_another_shape_do_not_cost_the_answer(logprobs: object) -> None:
    found = parse_single(orjson.dumps({"choices": [{"message": {"content": "a"}, "logprobs": logprobs}]}), 0.1)
    assert (found.text, found.first_token) == ("a", ())


@pytest.mark.parametrize("index", [-1, 1.0, "0", None, True, 7])
def test_a_choice_of_an_unknown_row_is_nobodys(index: object) -> None:
    rows = parse_batch(
        orjson.dumps({"choices": [{**choice(0, "lie"), "index": index}, choice(1, "b")]}), [request("x")] * 2, 1
    )
    assert isinstance(rows[0], InvalidOutput)
    assert isinstance(rows[1], Completion)
    assert rows[1].text == "b"


def test_a_row_that_comes_twice_is_not_believed() -> None:
    body = orjson.dumps({"choices": [choice(0, "a"), choice(0, "b"), choice(1, "c")]})
    rows = parse_batch(body, [request("x")] * 2, 1)
    assert isinstance(rows[0], InvalidOutput)
    assert isinstance(rows[1], Completion)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", "stop"),
        ("tool_calls", "stop"),
        ("length", "length"),
        (None, "stop"),
        ("content_filter", AnswerFiltered),
        ("SAFETY", AnswerFiltered),
        ("sensitive", AnswerFiltered),
        ("abort", EngineFailed),
        ("network_error", EngineFailed),
        ("because", InvalidOutput),
        (7, InvalidOutput),
    ],
)
def test_only_an_answer_that_ended_is_an_answer(reason: object, expected: str | type[EngineError]) -> None:
    whole = orjson.dumps({"choices": [{"message": {"content": "我不"}, "finish_reason": reason}]})
    streamed = StreamedCompletion("http://e")
    streamed.feed(
        event(content="我不") + b"data: " + orjson.dumps({"choices": [{"delta": {}, "finish_reason": reason}]})
    )
    streamed.feed(b"\n\ndata: [DONE]\n\n")
    parses: list[Callable[[], Completion]] = [lambda: parse_single(whole, 0.1), lambda: streamed.result(0.1, None)]
    for parse in parses:
        if isinstance(expected, str):
            assert parse().finish_reason == expected
        else:
            with pytest.raises(expected):
                parse()


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[{}]}', b'{"choices":[3]}']
)
def test_a_body_that_is_not_a_chat_completion_fails_the_attempt(body: bytes) -> None:
    with pytest.raises(InvalidOutput):
        parse_single(body, 0.1)


def event(**delta: object) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) + b"\n\n"


def test_a_stream_yields_its_text_piece_by_piece_and_whole_at_its_end() -> None:
    completion = StreamedCompletion("http://e")
    assert completion.feed(event(role="assistant", content="") + event(content="好") + event(content="的")) == "好的"
    assert completion.feed(b": a comment\n" + event(content="。") + b"data: [DONE]\n\n" + event(content="late")) == "。"
    assert completion.done
    assert completion.result(0.5, 0.1).text == "好的。"


@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 1_000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("colon", [b"data:", b"data: "])
def test_a_stream_may_be_written_in_every_way_that_the_standard_allows(pieces: int, end: bytes, colon: bytes) -> None:
    body = orjson.dumps({"choices": [{"delta": {"content": "你好"}}]}).replace(b"[{", b"[" + end + colon + b"{")
    usage = orjson.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}})
    lines = [b"\xef\xbb\xbf: hello", b"event: message", b"id: 1", colon + body, b"", b"retry: 9", colon, b""]
    text = end.join([*lines, colon + usage, b"", colon + b"[DONE]", b"", b""])
    completion = StreamedCompletion("http://e")
    step = -(-len(text) // pieces)
    heard = "".join(completion.feed(text[i : i + step]) for i in range(0, len(text), step))
    found = completion.result(0.1, None)
    assert heard in {"你好", ""}
    assert (found.text, found.prompt_tokens, found.completion_tokens) == ("你好", 5, 3)


def test_events_that_end_with_one_line_end_are_understood() -> None:
    completion = StreamedCompletion("http://e")
    completion.feed(event(content="好").rstrip() + b"\n" + event(content="的").rstrip() + b"\ndata:[DONE]\n")
    assert completion.done
    assert completion.result(0.1, None).text == "好的"


def test_a_stream_without_its_end_was_cut() -> None:
    completion = StreamedCompletion("http://e")
    completion.feed(event(content="half"))
    with pytest.raises(EngineFailed, match="http://e cut the stream"):
        completion.result(0.5, 0.1)


def test_an_error_within_a_stream_fails_the_attempt() -> None:
    with pytest.raises(EngineFailed, match="http://e failed during the request"):
        StreamedCompletion("http://e").feed(b'data: {"error": {"message": "words of the prompt"}}\n\n')


def test_a_stream_without_end_is_bounded() -> None:
    completion = StreamedCompletion("http://e")
    with pytest.raises(InvalidOutput, match="longer than 8 MiB"):
        for _ in range(200):
            completion.feed(b"data: " + b"x" * 65_536)
