"""What an engine reports at /metrics, under vLLM's names of any version."""

import re
from dataclasses import dataclass

from pipeline.engine.client import EngineClient
from pipeline.engine.pacing import Gauges
from schemas.errors import EngineError

# vLLM's page has about a thousand lines; only these are read. Versions differ in `:` or `_` after vllm, in `_total`, and in
# the name of the cache gauge.
_LINE = re.compile(
    rb"^vllm[:_](?P<name>num_requests_running|num_requests_waiting|kv_cache_usage_perc|gpu_cache_usage_perc"
    rb"|request_success_total|request_success|(?:prompt|generation)_tokens(?:_total)?"
    rb"|(?:inter_token_latency|time_per_output_token)_seconds_(?:sum|count))"
    rb"(?:\{(?P<labels>[^}\n]*)\})? +(?P<value>[0-9.eE+-]+)\s*$",
    re.M,
)
_STARTED = re.compile(rb"^process_start_time_seconds(?:\{[^}\n]*\})? +(?P<value>[0-9.eE+-]+)\s*$", re.M)
_MOST = 1e15
_NAMES = {b"gpu_cache_usage_perc": b"kv_cache_usage_perc", b"request_success_total": b"request_success"}


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """One poll of an engine.

    Attributes:
        gauges: see pacing.
        kv_usage: share of the KV cache in use, 0 to 1; None if not reported.
        tokens: read and written since it started: while it works they grow. None if not reported.
        between_tokens: seconds between tokens of its answers since it started, all together, and how many
            there were.
        started_at: when its process started, in seconds since 1970; 0 if not reported.
    """

    gauges: Gauges
    kv_usage: float | None
    tokens: float | None
    between_tokens: tuple[float, float] = (0.0, 0.0)
    started_at: float = 0.0


def parse_metrics(page: bytes, model: str) -> EngineMetrics | None:
    """Return the figures of a model, summed over its engines; None if running and waiting are not among them."""
    sums: dict[bytes, float] = {}
    own = f'model_name="{model}"'.encode()
    try:
        for found in _LINE.finditer(page):
            labels = found["labels"] or b""
            if b"model_name=" in labels and own not in labels:
                continue
            name = _NAMES.get(found["name"], found["name"])
            sums[name] = sums.get(name, 0.0) + float(found["value"])
    except ValueError:
        return None  # not a number: not vLLM's page
    if any(not 0 <= value < _MOST for value in sums.values()):
        return None
    if b"num_requests_running" not in sums or b"num_requests_waiting" not in sums:
        return None
    gauges = Gauges(sums[b"num_requests_running"], sums[b"num_requests_waiting"], sums.get(b"request_success", 0.0))
    tokens = [value for name, value in sums.items() if name.startswith((b"prompt_tokens", b"generation_tokens"))]
    timed = [
        (sums.get(name + b"_sum", 0.0), sums.get(name + b"_count", 0.0))
        for name in (b"inter_token_latency_seconds", b"time_per_output_token_seconds")
    ]
    between = next((pair for pair in timed if pair[1]), (0.0, 0.0))
    kv_usage, read_and_written = sums.get(b"kv_cache_usage_perc"), sum(tokens) if tokens else None
    return EngineMetrics(gauges, kv_usage, read_and_written, between, _started_at(page))


def _started_at(page: bytes) -> float:
    found = _STARTED.search(page)
    try:
        return float(found["value"]) if found else 0.0
    except ValueError:
        return 0.0


async def poll_metrics(client: EngineClient, endpoint: str, model: str) -> EngineMetrics | None:
    """Return the figures of an endpoint; None if it gives none that can be read within a second."""
    try:
        response = await client.get(endpoint, "/metrics", seconds=1.0)
    except EngineError:
        return None
    return parse_metrics(response.content, model) if response.status_code == 200 else None
