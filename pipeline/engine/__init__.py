"""Talking to vLLM over HTTP: requests, answers, and every foreign error mapped to ours.

client   one HTTP client for all endpoints: single, streamed and micro-batched chat
reading  response bodies to answers
errors   statuses and exceptions to EngineError
facts    what an endpoint is and can do, probed
metrics  what an engine says of itself at /metrics
endpoint one replica: how much is in flight there, and whether it is asked at all
pool     the replicas of a model: which is asked next
"""

from pipeline.engine.capabilities import EndpointFacts
from pipeline.engine.client import EngineClient
from pipeline.engine.endpoint import Endpoint
from pipeline.engine.pool import EnginePool

__all__ = ["Endpoint", "EndpointFacts", "EngineClient", "EnginePool"]
