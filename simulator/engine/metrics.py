"""/metrics in the Prometheus text format, with vLLM's names."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from time import time

from simulator.engine.core import Engine, StepResult

_FIRST_TOKEN_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_LATENCY_BOUNDS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
_TOKEN_BOUNDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


class Histogram:
    """Counts by upper bound, as in Prometheus."""

    def __init__(self, name: str, description: str, bounds: tuple[float, ...]) -> None:
        self._name = name
        self._description = description
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, as often as it occurred."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def render(self, model: str) -> Iterator[str]:
        """Return the lines of this histogram, with the labels in vLLM's order."""
        labels = f'engine="0",model_name="{model}"'
        yield f"# HELP {self._name} {self._description}"
        yield f"# TYPE {self._name} histogram"
        cumulative = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            cumulative += count
            yield f'{self._name}_bucket{{engine="0",le="{bound}",model_name="{model}"}} {float(cumulative)}'
        yield f"{self._name}_count{{{labels}}} {float(cumulative)}"
        yield f"{self._name}_sum{{{labels}}} {self._sum}"


class Metrics:
    """Values that /metrics shows in addition to the counters of the engine."""

    def __init__(self, model: str) -> None:
        self._model = _escape(model)
        self._labels = f'engine="0",model_name="{self._model}"'
        self.finished: Counter[str] = Counter()
        self.prompt_tokens_cached = 0
        self._first_token = Histogram(
            "vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", _FIRST_TOKEN_BOUNDS
        )
        self._latency = Histogram(
            "vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", _LATENCY_BOUNDS
        )

        self._between_tokens = Histogram(
            "vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", _TOKEN_BOUNDS
        )
        self._last_step: float | None = None
        self._started_at = round(time(), 2)

    def record_step(self, result: StepResult, now: float) -> None:
        """Record the timings of one engine step."""
        if result.continued > 0 and self._last_step is not None:
            self._between_tokens.observe(now - self._last_step, result.continued)
        self._last_step = now
        for generation in result.started:
            self._first_token.observe(now - generation.submitted_at)
            self.prompt_tokens_cached += generation.cached_tokens
        for generation in result.finished:
            self._latency.observe(now - generation.submitted_at)

    def render(self, engine: Engine) -> str:
        """Return the whole page."""
        totals, cache = engine.totals, engine.cache
        lines = [
            *self._gauge("num_requests_running", "Number of requests in model execution batches.", engine.running),
            *self._gauge("num_requests_waiting", "Number of requests waiting to be processed.", engine.waiting),
            *self._gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", engine.cache_usage),
            *self._counter("prefix_cache_queries", "Prefix cache queries, in tokens.", cache.queried_tokens),
            *self._counter("prefix_cache_hits", "Prefix cache hits, in tokens.", cache.hit_tokens),
            *self._counter("num_preemptions", "Cumulative number of preemption from the engine.", 0),
            *self._counter("prompt_tokens", "Number of prefill tokens processed.", totals.prompt_tokens),
            *self._counter("prompt_tokens_cached", "Number of cached prompt tokens.", self.prompt_tokens_cached),
            *self._counter("generation_tokens", "Number of generation tokens processed.", totals.generated_tokens),
            "# HELP vllm:admission_rejections_total Number of admission attempts rejected by a queue limit, by reason.",
            "# TYPE vllm:admission_rejections_total counter",
            f'vllm:admission_rejections_total{{{self._labels},reason="max_num_queued_reqs"}} {float(totals.rejected)}',
            "# HELP vllm:request_success_total Count of successfully processed requests.",
            "# TYPE vllm:request_success_total counter",
        ]
        for reason in FINISH_REASONS:
            labels = f'engine="0",finished_reason="{reason}",model_name="{self._model}"'
            lines.append(f"vllm:request_success_total{{{labels}}} {float(self.finished[reason])}")
        lines += [
            "# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.",
            "# TYPE process_start_time_seconds gauge",
            f"process_start_time_seconds {self._started_at}",
        ]
        lines.extend(self._first_token.render(self._model))
        lines.extend(self._between_tokens.render(self._model))
        lines.extend(self._latency.render(self._model))
        return "\n".join(lines) + "\n"

    def _gauge(self, name: str, description: str, value: float) -> tuple[str, str, str]:
        return (
            f"# HELP vllm:{name} {description}",
            f"# TYPE vllm:{name} gauge",
            f"vllm:{name}{{{self._labels}}} {float(value)}",
        )

    def _counter(self, name: str, description: str, value: float) -> tuple[str, str, str]:
        return (
            f"# HELP vllm:{name}_total {description}",
            f"# TYPE vllm:{name}_total counter",
            f"vllm:{name}_total{{{self._labels}}} {float(value)}",
        )


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
