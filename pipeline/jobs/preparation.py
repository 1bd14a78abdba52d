"""Check a job, choose its model and sanitise its images: everything before it is stored."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import orjson

from pipeline.images import ImageSanitizer
from pipeline.models import ModelEntry, Models
from pipeline.policies.routing import route
from pipeline.store.new_rows import NewJob
from schemas.completions import check_body, images_of
from schemas.errors import InvalidJob, UnknownModel
from schemas.job import DEFAULT_TENANT, Job
from schemas.jobs import StreamedJob, canonical, parse_job
from schemas.limits import MAX_IMAGES

_FETCHED_BYTES = 1024 * 1024  # of an image that is fetched: as large as pictures are, it is not known before
# What may differ when a caller sends the same job again: how the answer travels, and how soon it is wanted.
_NOT_HASHED: dict[str, object] = {"deadline": None, "priority": 0}


class Preparer:
    """Turns jobs of callers into rows.

    Args:
        models: the entries that jobs may go to.
        images: sanitises the images of vision jobs.
    """

    def __init__(self, models: Models, images: ImageSanitizer) -> None:
        self._models = models
        self._images = images

    def slots(self, model: str) -> int:
        """Return the sequences that an engine of a model runs at once."""
        return self._models[model].max_num_seqs

    async def prepare(self, job: Job | dict[str, Any], tenant: str | None = None, *, with_hash: bool = True) -> NewJob:
        """Return the row of a job; `tenant` is that of its batch, which the job may repeat.

        Args:
            job: as a caller gave it.
            tenant: of its batch.
            with_hash: whether it may be compared with another job of its idempotency key.

        Raises:
            InvalidJob: one sentence that names the field.
            UnknownModel: no model of models.toml supports it.
        """
        checked = parse_job(job if tenant is None else _of_tenant(job, tenant))
        entry = route(checked, self._models)
        _check_length(checked, entry)
        request = canonical(checked)
        # Of the images as they came: another Pillow writes other bytes.
        hashed = payload_hash(checked, request) if with_hash else b""
        if checked.image_urls:
            request = canonical(await self._images.sanitize(checked))
        return NewJob(
            kind=checked.kind,
            tenant=checked.tenant,
            request=request,
            model=entry.name,
            priority=checked.priority,
            deadline=checked.deadline,
            streamed=isinstance(checked, StreamedJob) and checked.stream,
            idempotency_key=checked.idempotency_key,
            payload_hash=hashed,
        )

    def plain_completion(self, body: Any, tenant: str, shared: Mapping[str, Any]) -> NewJob | None:
        """Return the row of a completion without images, as `prepare` would, in a third of the time; None if it is another.

        Args:
            body: of the completion.
            tenant: of its batch.
            shared: fields that all rows of the batch have beside their bodies: priority, model, cache, usage_mode, checked.
        """
        try:
            if check_body(body):
                return None
            name = shared.get("model") or body.get("model")
            entry = self._models.named(name)
        except (ValueError, UnknownModel):
            return None  # the slower way says why
        wanted = body.get("max_completion_tokens") or body.get("max_tokens") or 0
        if name is None or "completion" not in entry.kinds or wanted >= entry.max_model_len:
            return None
        fields = {"kind": "completion", "body": body, **shared}
        if tenant != DEFAULT_TENANT:
            fields["tenant"] = tenant
        request = orjson.dumps(fields)
        if b"\\u0000" in request:
            return None
        return NewJob("completion", tenant, request, entry.name, shared.get("priority", 0))


def image_bytes(job: Job | dict[str, Any]) -> int:
    """Return how large the images of a job may become in memory; 0 for a job without, checked or not."""
    given = job.image_urls.values() if isinstance(job, Job) else _unchecked_images(job)
    images = [one for one in given if isinstance(one, str)]
    return sum(len(one) if one.startswith("data:") else _FETCHED_BYTES for one in images[:MAX_IMAGES])


def _unchecked_images(job: Any) -> list[Any]:
    """Return what stands where images would be, in a job that is not checked yet."""
    if not isinstance(job, dict):
        return []
    if job.get("kind") != "completion":
        given = job.get("images")
        return list(given) if isinstance(given, list | tuple) else []
    try:
        return [url for _, url in images_of(job["body"])]
    except (KeyError, TypeError, AttributeError):
        return []


def _check_length(job: Job, entry: ModelEntry) -> None:
    """Refuse what can never be answered: prompt and answer share the context of the model."""
    wanted = job.wanted_tokens
    if wanted is not None and wanted >= entry.max_model_len:
        field = "sampling" if isinstance(job, StreamedJob) else "body"
        raise InvalidJob(
            f"job refused: {field}.max_tokens: {wanted:,} tokens of answer leave no room for the prompt: {entry.name} has "
            f"{entry.max_model_len:,} for both"
        )


def _of_tenant(job: Job | dict[str, Any], tenant: str) -> Job | dict[str, Any]:
    """Return a job with the tenant of its batch: it stands in every key, so it may not be left to a default."""
    if isinstance(job, Job):
        named = job.tenant if "tenant" in job.model_fields_set else tenant
        job = job if job.tenant == tenant else job.model_copy(update={"tenant": tenant})
    else:
        named = job.get("tenant", tenant) if isinstance(job, dict) else tenant
        job = {**job, "tenant": tenant} if isinstance(job, dict) else job
    if named != tenant:
        raise InvalidJob(
            "job refused: tenant: another one than that of the batch; submit the jobs of each tenant as a batch"
        )
    return job


def payload_hash(job: Job, request: bytes | None = None) -> bytes:
    """Hash what the caller asked for, in 16 bytes: equal for the same job under the same idempotency key.

    The key itself, deadline, priority and stream are not hashed.

    Args:
        job: a checked job.
        request: `canonical(job)`, if the caller has it already.

    Raises:
        InvalidJob: the job holds a character that cannot be stored.
    """
    defaults = _NOT_HASHED | ({"stream": False} if isinstance(job, StreamedJob) else {})
    if any(getattr(job, name) != value for name, value in defaults.items()):
        job, request = job.model_copy(update=defaults), None
    return sha256(request or canonical(job)).digest()[:16]
