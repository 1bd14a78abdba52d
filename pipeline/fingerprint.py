"""One hash for one payload, so that the same idempotency key with the same job can be told from another."""

from hashlib import sha256

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


__all__ = ["payload_hash"]
