"""What an engine says of itself at /metrics, under vLLM's names of any version."""

import re
from dataclasses import dataclass

from pipeline.engine.client import EngineClient
from pipeline.engine.pacing import Gauges
from schemas.errors import EngineError

# vLLM's page has about a thousand lines; only these are read. Versions differ in `:` or `_` after vllm, in `_total`, and in
# the name of the cache gauge.
_LINE = re.compile(
    rb"^vllm[:_](?P<name>num_requests_running|num_requests_waiting|kv_cache_usage_perc|gpu_cache_usage_perc"
    rb"|request_success_total|request_success|prefix_cache_queries_total|prefix_cache_hits_total)"
    rb"(?:\{(?P<labels>[^}\n]*)\})? +(?P<value>[0-9.eE+-]+)\s*$",
    re.M,
)
_MOST = 1e15
_NAMES = {b"gpu_cache_usage_perc": b"kv_cache_usage_perc", b"request_success_total": b"request_success"}


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """One look at an engine.

    Attributes:
        kv_usage: share of the KV cache in use, 0 to 1; None where it does not say.
        prefix_queries, prefix_hits: prompt tokens looked up in the prefix cache and found there, since the engine started.
    """

    gauges: Gauges
    kv_usage: float | None
    prefix_queries: float | None
    prefix_hits: float | None


def read_metrics(page: bytes, model: str) -> EngineMetrics | None:
    """The figures of a model, summed over its engines; None where running and waiting are not among them."""
    sums: dict[bytes, float] = {}
    mine = f'model_name="{model}"'.encode()
    try:
        for found in _LINE.finditer(page):
            labels = found["labels"] or b""
            if b"model_name=" in labels and mine not in labels:
                continue
            name = _NAMES.get(found["name"], found["name"])
            sums[name] = sums.get(name, 0.0) + float(found["value"])
    except ValueError:
        return None  # not a number: not vLLM's page
    if any(not 0 <= value < _MOST for value in sums.values()):
        return None
    if b"num_requests_running" not in sums or b"num_requests_waiting" not in sums:
        return None
    return EngineMetrics(
        Gauges(sums[b"num_requests_running"], sums[b"num_requests_waiting"], sums.get(b"request_success", 0.0)),
        sums.get(b"kv_cache_usage_perc"),
        sums.get(b"prefix_cache_queries_total"),
        sums.get(b"prefix_cache_hits_total"),
    )


async def ask_metrics(client: EngineClient, endpoint: str, model: str) -> EngineMetrics | None:
    """What the endpoint says now; None where it says nothing that can be read within a moment."""
    try:
        response = await client.get(endpoint, "/metrics", seconds=1.0)
    except EngineError:
        return None
    return read_metrics(response.content, model) if response.status_code == 200 else None


__all__ = ["EngineMetrics", "ask_metrics", "read_metrics"]
