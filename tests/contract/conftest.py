"""Model servers under test: the simulator always, a real vLLM where YYC3_TEST_VLLM_URL names one."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from model_server import CONTEXT_TOKENS, VLLM_URL, ModelServer, simulator_process


@pytest.fixture(scope="session", params=["simulator", "vllm"])
def server(request: pytest.FixtureRequest) -> Iterator[ModelServer]:
    if request.param == "vllm":
        if VLLM_URL is None:
            pytest.skip("YYC3_TEST_VLLM_URL names no vLLM")
        with httpx.Client(base_url=VLLM_URL, timeout=60) as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
            yield ModelServer(VLLM_URL, model, False, client)
        return
    arguments = ("--speed", "1000", "--max-model-len", str(CONTEXT_TOKENS))
    with simulator_process(*arguments) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield ModelServer(url, "chatglm3-6b", True, client)
