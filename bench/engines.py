"""Simulated engines for benchmarks, what they count, and a direct client to compare with."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from bench.setting import wait_for
from pipeline import kinds
from pipeline.engine import EngineClient
from pipeline.engine.metrics import parse_metrics
from pipeline.kinds import CompletionRequest, Constraint, EndpointProfile
from pipeline.models import LabelForm
from pipeline.stack import Stack
from schemas.errors import InvalidOutput
from schemas.jobs import parse_job

MODEL = "chatglm3-6b"
MAX_NUM_SEQS = 256
# An answer to bulk chat is as long as it may be, so that every run has as many tokens.
_LONG_ANSWERS = {"answers": [{"when": "退货的流程", "answer": "请先确认订单号和商品的包装，再联系快递上门取件。" * 60}]}


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@dataclass
class Engine:
    """One simulator process; it can be killed and started again at its address."""

    speed: float
    max_num_seqs: int = MAX_NUM_SEQS
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.port = self.port or free_port()
        arguments = ["--model", MODEL, "--port", str(self.port), "--speed", str(self.speed)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simulator", *arguments, "--max-num-seqs", str(self.max_num_seqs)],
            stdout=subprocess.DEVNULL,
        )

        def answers() -> bool:
            try:
                httpx.put(f"{self.url}/simulator/answers", json=_LONG_ANSWERS, trust_env=False).raise_for_status()
            except httpx.TransportError:
                return False
            return True

        wait_for(answers, "a simulator")

    def kill(self) -> None:
        """Send SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def engines(folder: Path, count: int, *, speed: float, max_num_seqs: int = MAX_NUM_SEQS) -> Iterator[list[Engine]]:
    """Run simulators of one model, and write a models.toml that names them."""
    started = [Engine(speed, max_num_seqs) for _ in range(count)]
    try:
        for engine in started:
            engine.start()
        write_models(folder, [engine.url for engine in started], max_num_seqs)
        yield started
    finally:
        for engine in started:
            engine.kill()


def write_models(folder: Path, urls: Sequence[str], max_num_seqs: int, max_model_len: int = 8_192) -> None:
    """Configure one model at these addresses for the processes that start from now on."""
    file = folder / "models.toml"
    lines = [
        f"[models.{MODEL}]",
        'kinds = ["chat", "intent", "sentiment"]',
        'label_form = "code"',
        "port = 1",
        f"endpoints = {json.dumps(list(urls))}",
    ]
    file.write_text("\n".join([*lines, f"max_num_seqs = {max_num_seqs}", f"max_model_len = {max_model_len}", ""]))
    os.environ["YYC3_MODELS_FILE"] = str(file)


def more_workers(stack: Stack, count: int) -> None:
    """Start bulk workers beside the first one."""
    for number in range(count):
        log = stack.folder / f"worker-more-{number}.log"
        stack.start(f"worker-more-{number}", ["-m", "workers.main", "bulk"])
        wait_for(lambda log=log: log.exists() and '"ready"' in log.read_text(errors="replace"), f"a worker; see {log}")  # type: ignore[misc]


@dataclass
class Count:
    """What engines did together since they started."""

    finished: float
    tokens: float
    running: float


async def counted(http: httpx.AsyncClient, urls: Sequence[str]) -> Count:
    """Read the metrics of all of them; one that is away counts nothing."""
    total = Count(0.0, 0.0, 0.0)
    for url in urls:
        try:
            page = (await http.get(f"{url}/metrics")).content
        except httpx.TransportError:
            continue
        metrics = parse_metrics(page, MODEL)
        if metrics is not None:
            total.finished += metrics.gauges.finished
            total.running += metrics.gauges.running
        for line in page.splitlines():
            if line.startswith(b"vllm:generation_tokens_total{"):
                total.tokens += float(line.rsplit(b" ", 1)[1])
    return total


@asynccontextmanager
async def looking() -> AsyncIterator[httpx.AsyncClient]:
    """Open an HTTP client that reads metrics."""
    async with httpx.AsyncClient(trust_env=False, timeout=2) as http:
        yield http


def intent(number: int) -> dict[str, Any]:
    """Make a job that ends with its first token."""
    text = f"您好，我是第{number}位客户，上个月的账单多扣了{number % 97}元，之前客服说会退，到现在也没有退回来，麻烦查一下。"
    return {"kind": "intent", "text": text, "cache": False}


def sentiment(number: int) -> dict[str, Any]:
    """Make the same with a short prompt, for engines with a small context."""
    return {"kind": "sentiment", "text": f"第{number}位客户：等了{number % 60}分钟。", "cache": False}


def chat(number: int, max_tokens: int = 256) -> dict[str, Any]:
    """Make a job that is answered in free text."""
    words = f"我是第{number}位客户，请把退货的流程详细讲一遍，每一步都讲清楚，再举{number % 9 + 2}个例子。"
    return {"kind": "chat", "messages": [{"role": "user", "content": words}], "sampling": {"max_tokens": max_tokens}}


class Direct:
    """An asyncio client that keeps a number of single requests in flight at one engine, and does nothing else."""

    def __init__(self, url: str, concurrency: int) -> None:
        self._url = url
        self._concurrency = concurrency
        self._client = EngineClient(timedelta(minutes=10))

    async def run(self, jobs: Sequence[dict[str, Any]]) -> None:
        """Send them all and wait for the answers."""
        requests: Iterator[CompletionRequest] = iter([_request(job) for job in jobs])

        async def one_after_another() -> None:
            for request in requests:
                with suppress(InvalidOutput):  # a real model of random weights writes text that cannot be stored
                    await self._client.complete(self._url, MODEL, request)

        await asyncio.gather(*[one_after_another() for _ in range(self._concurrency)])
        await self._client.close()


def _request(job: dict[str, Any]) -> CompletionRequest:
    return kinds.build(parse_job(job), EndpointProfile(LabelForm.CODE, Constraint.STRUCTURED_OUTPUTS, 8_192))


__all__ = [
    "MAX_NUM_SEQS",
    "MODEL",
    "Count",
    "Direct",
    "Engine",
    "chat",
    "counted",
    "engines",
    "free_port",
    "intent",
    "looking",
    "more_workers",
    "sentiment",
    "write_models",
]
