"""One hash for one payload, so that the same idempotency key with the same job can be told from another."""

from hashlib import sha256

from schemas.jobs import Job


def payload_hash(job: Job) -> bytes:
    """16 bytes over everything the caller asked for, the key itself left out."""
    return sha256(job.model_dump_json(exclude={"idempotency_key"}).encode()).digest()[:16]


__all__ = ["payload_hash"]
