"""The simulator answers recorded requests of a real vLLM with the same status and the same shape.

The recordings are not part of this repository: without them these tests are skipped at a desk and fail in CI.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.model_server import simulator_process

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "vllm" / "fixtures"

# Fields that only the simulator has.
ADDED_KEYS = {"simulated", "simulator"}

# Keys of these objects are tokens, so their names differ.
KEYED_BY_TOKEN = "top_logprobs[]"

NOT_REPLAYED = {
    "behave_disconnect.json": "a record of counters, not of an exchange; tested in test_simulator_alone",
    "behave_kill_engine.json": "the engine process is killed; the fault `crash` is tested in test_simulator_alone",
    "behave_overload.json": "many requests at once; tested in test_simulator_alone",
    "behave_priority.json": "many requests at once; tested in the unit tests of the engine",
    "metrics.json": "the simulator has the part of the page that callers read; tested with the other routes",
}


def recordings() -> list[Path]:
    found = sorted(RECORDINGS.glob("*.json")) + sorted((RECORDINGS / "xgrammar").glob("*.json"))
    return [path for path in found if path.name not in NOT_REPLAYED]


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[bool, httpx.Client]]:
    """Clients of two simulators, by whether the model takes images; a picture takes more tokens here than there."""
    with (
        simulator_process("--speed", "1000", "--max-model-len", "1024") as with_images,
        simulator_process("--speed", "1000", "--max-model-len", "512", "--no-images") as without,
        httpx.Client(base_url=with_images, timeout=60) as first,
        httpx.Client(base_url=without, timeout=60) as second,
    ):
        yield {True: first, False: second}


def replay(client: httpx.Client, request: dict[str, Any]) -> httpx.Response:
    headers = {"Content-Type": "application/json", **(request.get("headers") or {})}
    body = request["body"]
    content = None if body is None else body if isinstance(body, str) else json.dumps(body)
    return client.request(request["method"], request["path"], content=content, headers=headers)


def shape_of(value: Any, path: str = "") -> dict[str, set[str]]:
    """Paths of a JSON document with the types found there; numbers are one type, list items one path."""
    kind = "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    found = {path: {kind}}
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict) and not path.endswith(KEYED_BY_TOKEN):
        items = [(f"{path}.{key}", one) for key, one in value.items() if key not in ADDED_KEYS]
    elif isinstance(value, list):
        items = [(f"{path}[]", one) for one in value]
    for below, one in items:
        for key, kinds in shape_of(one, below).items():
            found.setdefault(key, set()).update(kinds)
    return found


def document_of(content_type: str, text: str) -> Any:
    if text.startswith("data: "):
        parts = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
        assert parts[-1] == "[DONE]"
        # First, last and middle events differ, and how many there are depends on the text.
        events = [json.loads(part) for part in parts[:-1]]
        return {"first": events[0], "last": events[-1], "others": events[1:-1]}
    return json.loads(text) if text else None


@pytest.mark.skipif(not RECORDINGS.is_dir() and "CI" not in os.environ, reason="the recordings are not here")
def test_the_recordings_are_there() -> None:
    assert len(recordings()) > 100


@pytest.mark.parametrize("path", recordings(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recorded_request_gets_the_same_status_and_shape(clients: dict[bool, httpx.Client], path: Path) -> None:
    recorded = json.loads(path.read_text("utf-8"))
    response = replay(clients[path.name.startswith("vl_")], recorded["request"])
    assert response.status_code == recorded["status"], response.text
    expected_type = {key.lower(): value for key, value in recorded["headers"].items()}.get("content-type", "")
    if expected_type:
        assert response.headers["content-type"].split(";")[0] == expected_type.split(";")[0]
    expected = shape_of(document_of(expected_type, recorded["body"]))
    actual = shape_of(document_of(response.headers.get("content-type", ""), response.text))
    if recorded["status"] >= 400 and "error" in recorded["body"]:
        error, real = response.json()["error"], json.loads(recorded["body"])["error"]
        assert (error["type"], error["param"], error["code"]) == (real["type"], real["param"], real["code"])
    assert actual == expected
