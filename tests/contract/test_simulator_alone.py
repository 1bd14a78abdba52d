"""What only the simulator has: faults, scripted answers, word lists, timing, and how it starts and stops."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.contract.model_server import simulator_process
from tests.support.sandbox import wait_for

SYSTEM = """Completion with one letter.
- A: refund — the customer wants money back
- B: delivery — where the parcel is
- C: human agent
- D: other"""


def messages_of(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def classify(client: httpx.Client, text: str, **fields: object) -> httpx.Response:
    choice = {"choice": ["A", "B", "C", "D"]}
    body = {"messages": messages_of(text), "structured_outputs": choice, "temperature": 0, "max_tokens": 4, **fields}
    return client.post("/v1/chat/completions", json=body)


def text_of(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["message"]["content"])


def state(client: httpx.Client) -> dict[str, int]:
    return dict(client.get("/simulator/state").json())


def fastest(measure: Callable[[], float], promised_seconds: float) -> float:
    """Measure up to five times, until a duration is as promised: a busy machine only adds to what the simulator needs."""
    durations: list[float] = []
    while len(durations) < 5 and (not durations or min(durations) >= promised_seconds):
        durations.append(measure())
    return min(durations)


def seconds_until(condition: Callable[[], bool], what: str) -> float:
    began = time.monotonic()
    wait_for(condition, what)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulator_process("--speed", "1000") as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
        client.delete("/simulator/faults")


def set_fault(client: httpx.Client, kind: str, probability: float = 1.0, seconds: float | None = None) -> None:
    fault = {"kind": kind, "probability": probability, "seconds": seconds}
    response = client.put("/simulator/faults", json={"faults": [fault]})
    assert response.json() == {"faults": [fault]}


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I want my money back", "A"),
        ("我要退款", "A"),
        ("where is my order?", "B"),
        ("快递怎么还没到", "B"),
        ("let me talk to a human", "C"),
        ("请帮我转人工", "C"),
        ("hmm", "D"),
        ("agent: your parcel is on its way\ncustomer: please refund me", "A"),
    ],
)
def test_a_label_letter_means_what_the_system_message_says(client: httpx.Client, text: str, label: str) -> None:
    assert text_of(classify(client, text)) == label


def test_every_answer_is_marked_as_simulated(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json={"messages": messages_of("你好")}).json()
    assert answer["simulated"] is True
    assert answer["system_fingerprint"].startswith("simulator-")
    assert "模拟" in answer["choices"][0]["message"]["content"]


def test_json_that_is_not_cut_fits_its_schema(client: httpx.Client) -> None:
    label = {"type": "string", "enum": ["refund", "delivery", "other"]}
    properties = {"label": label, "score": {"type": "integer", "minimum": 1, "maximum": 3}}
    schema = {"type": "object", "properties": properties, "required": ["label", "score"]}
    shape = {"type": "json_schema", "json_schema": {"name": "label", "schema": schema}}
    body = {"messages": messages_of("我要退款"), "response_format": shape}
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    value = json.loads(choice["message"]["content"])
    assert value["label"] == "refund"
    assert 1 <= value["score"] <= 3


@pytest.mark.parametrize("kind", ["400", "404", "422", "429", "500", "503"])
def test_a_status_fault_answers_with_that_status_and_an_error_body(client: httpx.Client, kind: str) -> None:
    set_fault(client, kind)
    response = classify(client, "x")
    assert response.status_code == int(kind)
    assert response.json()["error"]["code"] == int(kind)


def test_a_cut_answer_breaks_off(client: httpx.Client) -> None:
    set_fault(client, "cut")
    with pytest.raises(httpx.RemoteProtocolError):
        classify(client, "x")
    with pytest.raises(httpx.RemoteProtocolError):
        classify(client, "x", stream=True, structured_outputs=None)


def test_garbage_is_200_without_json(client: httpx.Client) -> None:
    set_fault(client, "garbage")
    response = classify(client, "x")
    assert response.status_code == 200
    with pytest.raises(ValueError):
        response.json()


def test_nonsense_is_a_valid_answer_outside_the_choices(client: httpx.Client) -> None:
    set_fault(client, "nonsense")
    assert text_of(classify(client, "x")) not in ("A", "B", "C", "D")


def test_an_aborted_answer_is_200_with_part_of_the_text(client: httpx.Client) -> None:
    whole = client.post("/v1/chat/completions", json={"messages": messages_of("hello")}).json()["choices"][0]
    set_fault(client, "abort")
    part = client.post("/v1/chat/completions", json={"messages": messages_of("hello")}).json()["choices"][0]
    assert part["finish_reason"] == "abort"
    assert 0 < len(part["message"]["content"]) < len(whole["message"]["content"])
    assert whole["message"]["content"].startswith(part["message"]["content"])


def test_an_empty_answer_has_no_text(client: httpx.Client) -> None:
    set_fault(client, "empty")
    assert text_of(classify(client, "x")) == ""


def test_a_crash_is_500_and_an_event_in_a_stream(client: httpx.Client) -> None:
    set_fault(client, "crash")
    assert classify(client, "x").status_code == 500
    response = classify(client, "x", stream=True, structured_outputs=None, max_tokens=10)
    assert response.status_code == 200
    events = response.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == 500


def test_a_slow_answer_comes_late(client: httpx.Client) -> None:
    set_fault(client, "slow", seconds=0.3)
    start = time.monotonic()
    assert classify(client, "x").status_code == 200
    assert time.monotonic() - start >= 0.3


def post_without_reading(url: str, body: dict[str, object]) -> HTTPConnection:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


def test_a_hanging_request_frees_its_slot_when_the_caller_disconnects(client: httpx.Client, url: str) -> None:
    set_fault(client, "hang")
    body: dict[str, object] = {"messages": messages_of("x"), "max_tokens": 8000, "ignore_eos": True}

    def seconds_to_free() -> float:
        before = state(client)
        connection = post_without_reading(url, body)
        wait_for(lambda: state(client)["rows"] == before["rows"] + 1, "the request to arrive")
        assert connection.sock is not None
        connection.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.getresponse()
        connection.close()
        seconds = seconds_until(lambda: state(client)["load"] == 0, "the request to be dropped")
        after = state(client)
        assert after["running"] == 0
        assert after["rows"] == before["rows"] + 1
        return seconds

    assert fastest(seconds_to_free, 0.5) < 0.5


def test_a_hanging_request_with_seconds_is_disconnected_after_them(client: httpx.Client) -> None:
    set_fault(client, "hang", seconds=0.1)
    for stream in (False, True):
        with pytest.raises(httpx.RemoteProtocolError):
            classify(client, "x", stream=stream)


def test_a_bad_row_fails_its_batch_and_is_bad_again_alone(client: httpx.Client) -> None:
    set_fault(client, "badrow", 0.3)
    texts = [f"row {number}" for number in range(20)]
    bad = [text for text in texts if classify(client, text).status_code == 400]
    assert 0 < len(bad) < len(texts)
    assert [text for text in texts if classify(client, text).status_code == 400] == bad
    rows = [messages_of(text) for text in texts]
    good = [messages_of(text) for text in texts if text not in bad]
    assert client.post("/v1/chat/completions/batch", json={"messages": rows, "max_tokens": 1}).status_code == 400
    assert client.post("/v1/chat/completions/batch", json={"messages": good, "max_tokens": 1}).status_code == 200


def test_faults_can_be_listed_and_removed(client: httpx.Client) -> None:
    set_fault(client, "503", 0.5)
    assert client.get("/simulator/faults").json()["faults"][0]["kind"] == "503"
    assert client.delete("/simulator/faults").json() == {"faults": []}
    refused = client.put("/simulator/faults", json={"faults": [{"kind": "flood"}]})
    assert refused.status_code == 400
    assert "flood" in refused.json()["error"]["message"]


def test_scripted_answers_have_precedence_over_word_lists(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    lines: list[dict[str, Any]] = [
        {"when": "order 7", "status": 503, "times": 1},
        {"when": "order 7", "answer": "B"},
        {"when": "order 8", "answer": "half", "finish_reason": "length"},
        {"when": "order 9", "fault": "garbage"},
    ]
    file.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    with (
        simulator_process("--speed", "1000", "--answers", str(file)) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        assert classify(client, "about order 7").status_code == 503
        assert text_of(classify(client, "about order 7")) == "B"
        assert classify(client, "about order 8").json()["choices"][0]["finish_reason"] == "length"
        assert classify(client, "about order 9").text.startswith(("{", "<"))


def test_an_old_version_follows_guided_choice_and_has_no_batch_route() -> None:
    with (
        simulator_process("--speed", "1000", "--vllm-version", "0.11.0") as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        assert client.get("/version").json()["version"] == "0.11.0"
        assert text_of(classify(client, "我要退款", guided_choice=["A", "B"], structured_outputs=None)) == "A"
        assert text_of(classify(client, "我要退款")) not in ("A", "B", "C", "D")
        assert client.post("/v1/chat/completions/batch", json={"messages": [[]]}).status_code == 404


def test_a_full_queue_refuses_with_503_and_stays_healthy() -> None:
    with simulator_process("--max-num-queued-reqs", "8") as url, httpx.Client(base_url=url, timeout=60) as client:
        rows = [messages_of(f"row {number}") for number in range(9)]
        response = client.post("/v1/chat/completions/batch", json={"messages": rows, "max_tokens": 1})
        assert response.status_code == 503
        assert response.json()["error"]["type"] == "Service Unavailable"
        assert client.get("/health").status_code == 200
        assert state(client)["running"] + state(client)["waiting"] == 0
        assert (
            client.post("/v1/chat/completions/batch", json={"messages": rows[:8], "max_tokens": 1}).status_code == 200
        )


def test_at_life_speed_ten_tokens_take_ten_steps() -> None:
    with simulator_process() as url, httpx.Client(base_url=url, timeout=60) as client:

        def seconds_for_ten_tokens() -> float:
            began = time.monotonic()
            body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 10}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
            taken = time.monotonic() - began
            assert taken >= 0.150
            return taken

        assert fastest(seconds_for_ten_tokens, 0.350) < 0.350


def test_a_caller_that_disconnects_frees_its_slot_within_half_a_second() -> None:
    with simulator_process() as url, httpx.Client(base_url=url, timeout=60) as client:
        body = {"messages": messages_of("x"), "max_tokens": 4000, "ignore_eos": True, "stream": True}

        def seconds_to_free() -> float:
            aborted = state(client)["aborted"]
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                # A variable: closed generators close the response.
                lines = response.iter_lines()
                next(lines)
                assert state(client)["running"] == 1
            seconds = seconds_until(lambda: state(client)["running"] == 0, "the slot to be free")
            assert state(client)["aborted"] == aborted + 1
            return seconds

        assert fastest(seconds_to_free, 0.5) < 0.5


def test_a_stopped_simulator_answers_what_is_in_flight_with_a_part_of_it() -> None:
    answers: list[httpx.Response] = []

    def post(url: str) -> None:
        body = {"messages": messages_of("x"), "max_tokens": 4000, "ignore_eos": True}
        answers.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60))

    with simulator_process() as url:
        caller = threading.Thread(target=post, args=(url,))
        caller.start()
        with httpx.Client(base_url=url, timeout=60) as client:
            wait_for(lambda: state(client)["running"] == 1, "the request to run")
    caller.join(timeout=60)
    assert answers[0].status_code == 200
    assert answers[0].json()["choices"][0]["finish_reason"] == "abort"


def test_the_same_seed_gives_the_same_probabilities() -> None:
    found = []
    for seed in ("7", "7", "8"):
        with (
            simulator_process("--speed", "1000", "--seed", seed) as url,
            httpx.Client(base_url=url, timeout=60) as client,
        ):
            entry = classify(client, "hmm", logprobs=True, top_logprobs=4).json()["choices"][0]["logprobs"]["content"][
                0
            ]
            found.append([math.exp(top["logprob"]) for top in entry["top_logprobs"]])
    assert found[0] == found[1] != found[2]


def start_and_fail(*arguments: str) -> str:
    command = [sys.executable, "-m", "simulator", "--model", "m", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    return finished.stderr


def test_a_simulator_that_cannot_start_gives_the_reason_in_one_sentence(tmp_path: Path) -> None:
    assert "'flood'" in start_and_fail("--fail", "flood:0.5")
    assert "'503:often'" in start_and_fail("--fail", "503:often")
    broken = tmp_path / "answers.jsonl"
    broken.write_text('{"when": "x", "answer": "y"}\nnot json\n', "utf-8")
    message = start_and_fail("--answers", str(broken))
    assert "Line 2" in message
    assert str(broken) in message
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in start_and_fail("--port", str(port))
