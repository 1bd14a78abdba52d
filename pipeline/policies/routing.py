"""Which model a job goes to. Pure."""

from pipeline.models import ModelEntry, Models
from schemas.errors import InvalidJob, UnknownModel
from schemas.job import Job


def route(job: Job, models: Models) -> ModelEntry:
    """Return the model that the job names, or the first one that supports its kind.

    Raises:
        UnknownModel: no such model, or it does not support this kind.
        InvalidJob: more images than any model reads.
    """
    wanted = job.wanted_model
    supporting = [_named(job, wanted, models)] if wanted is not None else _supporting(job, models)
    images = len(job.image_urls)
    for entry in supporting:
        if images <= entry.max_images:
            return entry
    most = max(supporting, key=lambda entry: entry.max_images)
    raise InvalidJob(f"job refused: images: {images} are given, {most.name} reads at most {most.max_images} a job")


def _named(job: Job, name: str, models: Models) -> ModelEntry:
    entry = models.named(name)
    if job.kind not in entry.kinds:
        kinds = ", ".join(entry.kinds)
        raise UnknownModel(f"model: {name!r} does not support {job.kind}; its kinds are {kinds}", model=name)
    return entry


def _supporting(job: Job, models: Models) -> list[ModelEntry]:
    found = [entry for entry in models if job.kind in entry.kinds]
    if not found:
        raise UnknownModel(f"kind: no model in models.toml supports {job.kind}")
    return found
