"""Name a question, so that its answer can be found again. Pure."""

from collections.abc import Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Any
from uuid import UUID

import orjson

from pipeline.kinds.requests import CompletionRequest


def cache_key(
    tenant: str,
    model: str,
    revision: str | None,
    simulated: bool,
    request: CompletionRequest,
    parameters: Mapping[str, Any] = MappingProxyType({}),
) -> UUID:
    """Return a key over everything that the answer depends on, and its tenant; `parameters` are those of the model."""
    given = orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS).decode() if parameters else ""
    origin = f"{tenant}\0{model}\0{given}\0{revision}\0{simulated}\0{request.template.key}\0{request.truncated}\0"
    return UUID(bytes=blake2b(origin.encode() + request.conversation, digest_size=16).digest())
