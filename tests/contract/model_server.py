"""Model servers under test: the simulator always, a real vLLM where YYC3_TEST_VLLM_URL names one.

The real one is expected to serve any model with a context of 512 tokens, with priority scheduling and load tracking.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

VLLM_URL = os.environ.get("YYC3_TEST_VLLM_URL")
VLLM_VISION_URL = os.environ.get("YYC3_TEST_VLLM_VISION_URL")
CONTEXT_TOKENS = 512


@dataclass(frozen=True)
class ModelServer:
    url: str
    model: str
    simulated: bool
    client: httpx.Client

    def post(self, path: str, **fields: object) -> httpx.Response:
        return self.client.post(path, json={"model": self.model, **fields})

    def chat(self, text: str, **fields: object) -> httpx.Response:
        return self.post("/v1/chat/completions", messages=[{"role": "user", "content": text}], **fields)

    def batch(self, texts: list[str], **fields: object) -> httpx.Response:
        messages = [[{"role": "user", "content": text}] for text in texts]
        return self.post("/v1/chat/completions/batch", messages=messages, **fields)


@contextmanager
def simulator_process(*arguments: str) -> Iterator[str]:
    """Run a simulator in its own process, on a free port; yields its URL.

    Checks that SIGTERM ends it with status 0, and that it wrote no error or warning.
    """
    command = [sys.executable, "-W", "error", "-m", "simulator", "--model", "chatglm3-6b", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            announcement = process.stdout.readline()
            yield announcement.split(" listens on ")[1].split(";")[0]
        finally:
            process.terminate()
            errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors) == (0, "")
