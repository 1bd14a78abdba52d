"""vLLM over HTTP: requests, answers, and which endpoint is used.

client        one HTTP client for all endpoints: single, streamed and micro-batched chat
responses     response bodies to completions
errors        statuses and exceptions translated to EngineError
capabilities  what an endpoint is and supports, probed
metrics       what an engine reports at /metrics
breaker       when an endpoint is not used, and for how long
pacing        how many rows a process keeps in flight at an endpoint
endpoint      one replica: its load, and whether it is used
pool          the replicas of a model: which one is used next
"""

from pipeline.engine.capabilities import Capabilities
from pipeline.engine.client import EngineClient
from pipeline.engine.endpoint import Endpoint
from pipeline.engine.pool import EnginePool

__all__ = ["Capabilities", "Endpoint", "EngineClient", "EnginePool"]
