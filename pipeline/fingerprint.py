"""One hash for one payload, so that the same idempotency key with the same job can be told from another."""

from hashlib import sha256

from schemas.jobs import Job, canonical


def payload_hash(job: Job) -> bytes:
    """16 bytes over everything the caller asked for, the key itself left out.

    Raises:
        InvalidJob: the job holds a character that cannot be stored.
    """
    return sha256(canonical(job)).digest()[:16]


__all__ = ["payload_hash"]
