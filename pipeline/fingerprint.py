"""One hash for one payload, so that the same idempotency key with the same job can be told from another."""

from hashlib import sha256

from schemas.jobs import Job, canonical


def payload_hash(job: Job) -> bytes:
    """16 bytes over everything the caller asked for; the key itself and how the answer travels are left out.

    Raises:
        InvalidJob: the job holds a character that cannot be stored.
    """
    asked = job.model_copy(update={"stream": False}) if getattr(job, "stream", False) else job
    return sha256(canonical(asked)).digest()[:16]


__all__ = ["payload_hash"]
