"""The HTTP behaviour that callers rely on, checked with the simulator and with a real vLLM."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import pytest

from tests.contract.model_server import CONTEXT_TOKENS, ModelServer
from tests.support.sandbox import wait_for

LABELS = ["positive", "neutral", "negative"]
SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["refund", "other"]}, "score": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["label", "score"],
    "additionalProperties": False,
}


def error_of(response: httpx.Response, status: int, param: str | None, kind: str = "BadRequestError") -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"], error["type"]) == (status, param, kind)
    return str(error["message"])


def events_of(text: str) -> list[dict[str, Any]]:
    parts = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    assert parts[-1] == "[DONE]"
    return [json.loads(part) for part in parts[:-1]]


def test_a_healthy_server_answers_without_a_body(server: ModelServer) -> None:
    response = server.client.get("/health")
    assert (response.status_code, response.content) == (200, b"")


def test_the_version_is_a_string_of_numbers(server: ModelServer) -> None:
    version = server.client.get("/version").json()
    assert version["version"].split(".")[0].isdigit()
    assert version.get("simulator", False) is server.simulated


def test_the_models_route_shows_the_name_and_the_context(server: ModelServer) -> None:
    model = server.client.get("/v1/models").json()["data"][0]
    assert model["max_model_len"] == CONTEXT_TOKENS
    assert (model["owned_by"] == "simulator") is server.simulated


def test_an_unknown_route_is_404_and_a_wrong_method_405(server: ModelServer) -> None:
    missing = server.client.get("/v1/nothing")
    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
    wrong = server.client.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})


def test_the_usage_of_a_chat_answer_adds_up(server: ModelServer) -> None:
    answer = server.chat("hello", max_tokens=4).json()
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] <= 4
    assert answer["system_fingerprint"].startswith("simulator-") is server.simulated


def test_a_request_without_a_model_is_served(server: ModelServer) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    assert server.client.post("/v1/chat/completions", json=body).status_code == 200


def test_a_choice_is_answered_with_one_of_the_choices(server: ModelServer) -> None:
    answer = server.chat("I am happy", max_tokens=16, structured_outputs={"choice": LABELS}).json()
    choice = answer["choices"][0]
    assert choice["message"]["content"] in LABELS
    assert choice["finish_reason"] == "stop"


def test_the_end_token_is_counted_but_not_shown(server: ModelServer) -> None:
    answer = server.chat("x", max_tokens=8, structured_outputs={"choice": ["A", "B"]}, return_token_ids=True).json()
    choice = answer["choices"][0]
    assert len(choice["message"]["content"]) == 1
    assert len(choice["token_ids"]) == answer["usage"]["completion_tokens"] == 2
    assert len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]


def test_one_token_of_a_choice_finishes_with_length(server: ModelServer) -> None:
    choice = server.chat("x", max_tokens=1, structured_outputs={"choice": ["A", "B"]}).json()["choices"][0]
    assert choice["message"]["content"] in ("A", "B")
    assert choice["finish_reason"] == "length"


def test_logprobs_of_a_constrained_token_are_those_after_the_constraint(server: ModelServer) -> None:
    answer = server.batch(
        ["hello", "good"], max_tokens=1, logprobs=True, top_logprobs=5, structured_outputs={"choice": ["A", "B", "C"]}
    ).json()
    for choice in answer["choices"]:
        entry = choice["logprobs"]["content"][0]
        assert entry["token"] == choice["message"]["content"] == entry["top_logprobs"][0]["token"]
        values = {top["token"]: top["logprob"] for top in entry["top_logprobs"]}
        assert len(values) == 5
        assert sum(math.exp(values[label]) for label in "ABC") == pytest.approx(1.0, abs=1e-3)
        assert [value for token, value in values.items() if token not in "ABC"] == [-9999.0, -9999.0]


def test_logprobs_of_allowed_tokens_are_those_before_the_restriction(server: ModelServer) -> None:
    ids = [server.post("/tokenize", prompt=label).json()["tokens"][0] for label in "ABC"]
    answer = server.batch(
        ["hello", "good"], max_tokens=1, logprobs=True, top_logprobs=3, allowed_token_ids=ids, logprob_token_ids=ids
    ).json()
    for choice in answer["choices"]:
        entry = choice["logprobs"]["content"][0]
        assert entry["token"] in "ABC"
        listed = {top["token"]: top["logprob"] for top in entry["top_logprobs"]}
        assert set(listed) == set("ABC")
        assert all(value > -9999.0 for value in listed.values())
        assert sum(math.exp(value) for value in listed.values()) < 1.0


def test_the_end_token_has_a_logprob_of_its_own(server: ModelServer) -> None:
    fields = {"max_tokens": 4, "logprobs": True, "top_logprobs": 1, "structured_outputs": {"choice": ["A", "B"]}}
    content = server.chat("x", **fields).json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content][1:] == ["</s>"]
    assert content[1]["logprob"] == pytest.approx(0.0, abs=1e-6)


def test_guided_choice_is_ignored_by_a_new_server(server: ModelServer) -> None:
    choice = server.chat("x", max_tokens=8, guided_choice=["A", "B"]).json()["choices"][0]
    assert choice["message"]["content"] not in ("A", "B")


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/chat/completions/batch"])
def test_json_cut_short_is_200_with_finish_length(server: ModelServer, route: str) -> None:
    messages: list[object] = [{"role": "user", "content": "x"}]
    shape = {"type": "json_schema", "json_schema": {"name": "label", "schema": SCHEMA}}
    batch = route.endswith("batch")
    fields = {"messages": [messages] if batch else messages, "max_tokens": 2, "response_format": shape}
    choice = server.post(route, **fields).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    with pytest.raises(ValueError):
        json.loads(choice["message"]["content"])


def test_a_regular_expression_is_kept(server: ModelServer) -> None:
    answer = server.chat("x", max_tokens=32, structured_outputs={"regex": "[0-9]{3}-[a-z]{2}"}).json()
    text = answer["choices"][0]["message"]["content"]
    assert (text[:3].isdigit(), text[3], text[4:].isalpha(), len(text)) == (True, "-", True, 6)


def test_a_stream_begins_with_the_role_and_ends_with_usage(server: ModelServer) -> None:
    response = server.chat("hello", max_tokens=3, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 3
    assert {event["id"] for event in events} == {events[0]["id"]}


def test_a_stream_of_two_prompts_carries_both_indices(server: ModelServer) -> None:
    response = server.post("/v1/completions", prompt=["hi", "ho"], max_tokens=2, stream=True)
    ends = [e["choices"][0]["index"] for e in events_of(response.text) if e["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1]


def test_a_batch_answers_every_row_in_its_place(server: ModelServer) -> None:
    texts = ["hello", "天气很好", "x"]
    answer = server.batch(texts, max_tokens=2, return_token_ids=True).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert sum(len(choice["token_ids"]) for choice in answer["choices"]) == answer["usage"]["completion_tokens"]
    alone = [server.chat(text, max_tokens=2).json()["usage"]["prompt_tokens"] for text in texts]
    assert sum(alone) == answer["usage"]["prompt_tokens"]
    assert answer["prompt_token_ids"] is None


def test_a_batch_ignores_stream_and_tools(server: ModelServer) -> None:
    response = server.batch(["x"], max_tokens=2, stream=True, tools=[{"type": "function", "function": {"name": "f"}}])
    assert response.status_code == 200
    assert response.json()["object"] == "chat.completion"


def test_one_row_that_is_too_long_fails_the_whole_batch(server: ModelServer) -> None:
    message = error_of(server.batch(["hello", "天气很好。" * 400], max_tokens=2), 400, "input_tokens")
    assert f"{CONTEXT_TOKENS} tokens" in message


def test_a_batch_allows_one_answer_a_row_and_needs_a_row(server: ModelServer) -> None:
    error_of(server.batch(["x"], n=2), 400, "n")
    error_of(server.batch([]), 400, "body.messages", "Bad Request")
    rows = [[{"role": "user", "content": "x"}], []]
    error_of(server.post("/v1/chat/completions/batch", messages=rows), 400, "body.messages.1", "Bad Request")


def test_output_is_clipped_at_the_context(server: ModelServer) -> None:
    answer = server.chat("hello", max_tokens=CONTEXT_TOKENS - 1, ignore_eos=True).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == CONTEXT_TOKENS


def test_an_unknown_model_is_404(server: ModelServer) -> None:
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": "x"}]}
    error_of(server.client.post("/v1/chat/completions", json=body), 404, "model", "NotFoundError")


@pytest.mark.parametrize(
    ("fields", "param", "kind"),
    [
        ({"max_tokens": 0}, "max_tokens", "BadRequestError"),
        ({"max_tokens": CONTEXT_TOKENS + 1}, "max_tokens", "BadRequestError"),
        ({"max_tokens": "many"}, "body.max_tokens", "Bad Request"),
        ({"max_tokens": 2.5}, "body.max_tokens", "Bad Request"),
        ({"temperature": -1}, "temperature", "BadRequestError"),
        ({"temperature": 3}, "temperature", "BadRequestError"),
        ({"top_p": 1.5}, "top_p", "BadRequestError"),
        ({"n": 0}, None, "BadRequestError"),
        ({"n": 2, "temperature": 0}, None, "BadRequestError"),
        ({"priority": "high"}, "body.priority", "Bad Request"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs", "BadRequestError"),
        ({"top_logprobs": 2}, "top_logprobs", "BadRequestError"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "BadRequestError"),
        ({"structured_outputs": {"choice": []}}, None, "BadRequestError"),
        ({"structured_outputs": {"choice": ["a"], "regex": "b"}}, None, "BadRequestError"),
        ({"structured_outputs": {"choice": [1]}}, "body.structured_outputs.choice.0", "Bad Request"),
        ({"structured_outputs": {"regex": "("}}, None, "BadRequestError"),
        ({"structured_outputs": {"json": {"type": "nonsense"}}}, None, "BadRequestError"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "BadRequestError"),
        ({"response_format": {"type": "yaml"}}, "body.response_format.type", "Bad Request"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "BadRequestError"),
        ({"allowed_token_ids": [99_999_999]}, "allowed_token_ids", "BadRequestError"),
        ({"truncate_prompt_tokens": CONTEXT_TOKENS + 1}, "truncate_prompt_tokens", "BadRequestError"),
        ({"min_tokens": 9, "max_tokens": 2}, None, "BadRequestError"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, None, "BadRequestError"),
    ],
)
def test_a_wrong_field_is_named(server: ModelServer, fields: dict[str, object], param: str | None, kind: str) -> None:
    error_of(server.chat("hello", **fields), 400, param, kind)


@pytest.mark.parametrize(
    ("content", "headers", "param"),
    [
        (b'{"messages": [', {"Content-Type": "application/json"}, "body.14"),
        (b"[1]", {"Content-Type": "application/json"}, "body"),
        (b"", {"Content-Type": "application/json"}, "body"),
        (b"{}", {"Content-Type": "application/json"}, "body.messages"),
        (b"{}", {"Content-Type": "text/plain"}, None),
    ],
)
def test_a_broken_body_is_a_bad_request(
    server: ModelServer, content: bytes, headers: dict[str, str], param: str | None
) -> None:
    response = server.client.post("/v1/chat/completions", content=content, headers=headers)
    error_of(response, 400, param, "Bad Request")


def test_unknown_fields_are_ignored(server: ModelServer) -> None:
    assert server.chat("x", max_tokens=1, no_such_field=1).status_code == 200


def test_the_caller_may_name_its_request(server: ModelServer) -> None:
    assert server.chat("x", max_tokens=1, request_id="row-1").json()["id"] == "chatcmpl-row-1"
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    answer = server.client.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "row-2"}).json()
    assert answer["id"] == "chatcmpl-row-2"


def test_a_long_prompt_is_truncated_on_request(server: ModelServer) -> None:
    answer = server.chat("天气很好。" * 400, max_tokens=1, truncate_prompt_tokens=100).json()
    assert answer["usage"]["prompt_tokens"] == 100


def test_completions_accept_texts_lists_and_token_ids(server: ModelServer) -> None:
    assert len(server.post("/v1/completions", prompt="hi", max_tokens=2).json()["choices"]) == 1
    assert len(server.post("/v1/completions", prompt=["hi", "ho"], n=2, max_tokens=2).json()["choices"]) == 4
    ids = server.post("/tokenize", prompt="hello world").json()["tokens"]
    answer = server.post("/v1/completions", prompt=ids, max_tokens=2).json()
    assert answer["usage"]["prompt_tokens"] == len(ids)
    error_of(server.post("/v1/completions", prompt=[], max_tokens=2), 400, None)


def test_logprobs_of_completions_list_tokens_and_offsets(server: ModelServer) -> None:
    logprobs = server.post("/v1/completions", prompt="hi", max_tokens=2, logprobs=2).json()["choices"][0]["logprobs"]
    assert set(logprobs) == {"text_offset", "token_logprobs", "tokens", "top_logprobs"}
    assert {len(values) for values in logprobs.values()} == {2}


def test_tokens_can_be_counted_and_turned_back(server: ModelServer) -> None:
    counted = server.post("/tokenize", prompt="A", add_special_tokens=False, return_token_strs=True).json()
    assert (counted["count"], counted["max_model_len"], counted["token_strs"]) == (1, CONTEXT_TOKENS, ["A"])
    assert server.post("/detokenize", tokens=counted["tokens"]).json() == {"prompt": "A"}
    messages = [{"role": "user", "content": "A"}]
    of_chat = server.post("/tokenize", messages=messages).json()
    assert of_chat["count"] == server.chat("A", max_tokens=1).json()["usage"]["prompt_tokens"]
    error_of(server.post("/tokenize"), 400, "body.prompt", "Bad Request")


def test_metrics_have_the_names_that_callers_read(server: ModelServer) -> None:
    server.chat("x", max_tokens=1)
    text = server.client.get("/metrics").text
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
        "prefix_cache_hits_total", "prompt_tokens_total", "generation_tokens_total", "num_preemptions_total",
        "time_to_first_token_seconds_sum", "time_to_first_token_seconds_count", "e2e_request_latency_seconds_sum",
    ):  # fmt: skip
        assert f'vllm:{name}{{engine="0",model_name="{server.model}"}}' in text, name
    assert f'vllm:request_success_total{{engine="0",finished_reason="length",model_name="{server.model}"}}' in text
    assert 'vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",' in text


def test_an_idle_server_has_no_load(server: ModelServer) -> None:
    assert server.client.get("/load").json() == {"server_load": 0}


def test_a_caller_that_disconnects_frees_its_slot(server: ModelServer) -> None:
    if server.simulated:
        pytest.skip("this simulator answers too fast; see test_simulator_alone")
    with httpx.stream(
        "POST",
        f"{server.url}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "x"}], "max_tokens": 490, "ignore_eos": True, "stream": True},
    ) as response:
        # A variable: closed generators close the response.
        lines = response.iter_lines()
        next(lines)
        wait_for(lambda: server.client.get("/load").json() == {"server_load": 1}, "the request to run")
    wait_for(lambda: server.client.get("/load").json() == {"server_load": 0}, "the slot to be free", 1.0)


def test_an_image_that_cannot_be_decoded_is_a_bad_request(server: ModelServer) -> None:
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    response = server.post("/v1/chat/completions", messages=[{"role": "user", "content": content}], max_tokens=1)
    error_of(response, 400, None)
