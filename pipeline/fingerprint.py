"""One hash for one payload, so that the same idempotency key with the same job can be told from another."""

from hashlib import sha256

from schemas.jobs import Job, StreamedJob, canonical


def payload_hash(job: Job) -> bytes:
    """16 bytes over what the caller asked for. The key itself is left out, and so is what may differ when the same job is sent
    again: how the answer travels, and how soon it is wanted.

    Raises:
        InvalidJob: the job holds a character that cannot be stored.
    """
    changes: dict[str, object] = {"deadline": None, "priority": 0}
    if isinstance(job, StreamedJob):
        changes["stream"] = False
    return sha256(canonical(job.model_copy(update=changes))).digest()[:16]


__all__ = ["payload_hash"]
