"""Talking to vLLM over HTTP: requests, answers, and every foreign error mapped to ours.

client   one HTTP client for all endpoints: single, streamed and micro-batched chat
reading  response bodies to answers
errors   statuses and exceptions to EngineError
facts    what an endpoint is and can do, asked once
pool     the replicas of a model: which to use, how much is in flight
"""

from pipeline.engine.client import EngineClient
from pipeline.engine.facts import EndpointFacts
from pipeline.engine.pool import EnginePool

__all__ = ["EndpointFacts", "EngineClient", "EnginePool"]
