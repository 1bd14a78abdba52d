"""Hashes: one for a payload, to tell the same job from another under one key; one for a question, to find its answer again."""

from hashlib import blake2b, sha256
from uuid import UUID

from pipeline.kinds.requests import Ask
from schemas.jobs import Job, StreamedJob, canonical


def payload_hash(job: Job, written: bytes | None = None) -> bytes:
    """16 bytes over what the caller asked for. The key itself is left out, and so is what may differ when the same job is sent
    again: how the answer travels, and how soon it is wanted. `written` is `canonical(job)` where the caller has it.

    Raises:
        InvalidJob: the job holds a character that cannot be stored.
    """
    changes: dict[str, object] = {"deadline": None, "priority": 0}
    if isinstance(job, StreamedJob):
        changes["stream"] = False
    if any(getattr(job, name) != value for name, value in changes.items()):
        job, written = job.model_copy(update=changes), None
    return sha256(written or canonical(job)).digest()[:16]


def answer_key(tenant: str, model: str, revision: str | None, simulated: bool, ask: Ask) -> UUID:
    """Names a question: everything that the answer depends on, and whose it is."""
    origin = f"{tenant}\0{model}\0{revision}\0{simulated}\0{ask.shape.key}\0{ask.truncated}\0"
    return UUID(bytes=blake2b(origin.encode() + ask.conversation, digest_size=16).digest())


__all__ = ["answer_key", "payload_hash"]
