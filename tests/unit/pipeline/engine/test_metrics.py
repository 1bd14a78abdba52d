"""The metrics page of an engine, under the names of any version."""

import pytest

from pipeline.engine.metrics import parse_metrics
from pipeline.engine.pacing import Gauges

NEW = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_running{engine="0",model_name="other"} 50.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 1.2e+06
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 3.0
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 80.0
"""
OLD = b"vllm:num_requests_running 3\nvllm:num_requests_waiting 0\nvllm:gpu_cache_usage_perc 0.5\n"


def test_gauges_of_our_model_are_read_under_old_and_new_names() -> None:
    new, old = parse_metrics(NEW, "m"), parse_metrics(OLD, "m")
    assert new is not None
    assert old is not None
    assert new.gauges == Gauges(7.0, 2.0, 1_200_003.0)
    assert new.kv_usage == 0.25
    assert (old.gauges, old.kv_usage) == (Gauges(3.0, 0.0, 0.0), 0.5)


@pytest.mark.parametrize(
    "page", [b"", b"<html>", b"vllm:num_requests_running NaN\n", NEW.replace(b"num_requests", b"x")]
)
def test_a_page_without_gauges_is_none(page: bytes) -> None:
    assert parse_metrics(page, "m") is None


def test_gauges_that_are_not_numbers_are_none() -> None:
    assert parse_metrics(b"vllm:num_requests_running 1e.3\nvllm:num_requests_waiting 0\n", "m") is None
