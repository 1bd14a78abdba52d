"""Name a question, so that its answer can be found again. Pure."""

from hashlib import blake2b
from uuid import UUID

from pipeline.kinds.requests import CompletionRequest


def cache_key(tenant: str, model: str, revision: str | None, simulated: bool, request: CompletionRequest) -> UUID:
    """Return a key over everything that the answer depends on, and its tenant."""
    origin = f"{tenant}\0{model}\0{revision}\0{simulated}\0{request.template.key}\0{request.truncated}\0"
    return UUID(bytes=blake2b(origin.encode() + request.conversation, digest_size=16).digest())
