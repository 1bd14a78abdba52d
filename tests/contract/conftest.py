"""Model servers under test: the simulator always, a real vLLM where YYC3_TEST_VLLM_URL names one."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.contract.model_server import CONTEXT_TOKENS, VLLM_URL, VLLM_VISION_URL, ModelServer, simulator_process


@pytest.fixture(scope="session", params=["simulator", "vllm"])
def server(request: pytest.FixtureRequest) -> Iterator[ModelServer]:
    yield from _server(request.param, VLLM_URL, "YYC3_TEST_VLLM_URL names no vLLM")


@pytest.fixture(scope="session", params=["simulator", "vllm"])
def seeing(request: pytest.FixtureRequest) -> Iterator[ModelServer]:
    """A server whose model reads pictures."""
    yield from _server(request.param, VLLM_VISION_URL, "YYC3_TEST_VLLM_VISION_URL names no vLLM that reads pictures")


def _server(which: str, vllm_url: str | None, otherwise: str) -> Iterator[ModelServer]:
    if which == "vllm":
        if vllm_url is None:
            pytest.skip(otherwise)
        with httpx.Client(base_url=vllm_url, timeout=60) as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
            yield ModelServer(vllm_url, model, False, client)
        return
    arguments = ("--speed", "1000", "--max-model-len", str(CONTEXT_TOKENS))
    with simulator_process(*arguments) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield ModelServer(url, "chatglm3-6b", True, client)
