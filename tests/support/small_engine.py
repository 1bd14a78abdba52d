"""A small simulated engine with a worker of each lane, and jobs that fill it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pipeline import Client
from tests.support.sandbox import Sandbox, Simulator

MAX_NUM_SEQS = 64


@contextmanager
def running(sandbox: Sandbox, *arguments: str, speed: float = 10) -> Iterator[tuple[Client, Simulator]]:
    """Run a small engine, a worker of each lane and recovery."""
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator("--max-num-seqs", str(MAX_NUM_SEQS), *arguments, speed=speed))
        models = sandbox.home / "models.toml"
        models.write_text(
            f'[models.chatglm3-6b]\nkinds = ["chat", "intent", "sentiment"]\nport = 1\nmax_num_seqs = {MAX_NUM_SEQS}\n'
            "interactive_reserve = 0.125\n"
        )
        sandbox.environment["YYC3_MODELS_FILE"] = str(models)
        for lane in ("interactive", "bulk"):
            stack.enter_context(sandbox.worker(lane))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        yield client, simulator


def chat(number: int, **more: Any) -> dict[str, Any]:
    """Make a chat job whose answer takes a while."""
    messages = [{"role": "user", "content": f"讲个故事，第{number}个"}]
    return {"kind": "chat", "messages": messages, "sampling": {"max_tokens": 200}, **more}
