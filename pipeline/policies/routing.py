"""Which model a job goes to."""

from pipeline.models import ModelEntry, Models
from schemas.errors import InvalidJob, UnknownModel
from schemas.jobs import Job, VisionJob


def route(job: Job, models: Models) -> ModelEntry:
    """The job's own choice, or the first model that can do it.

    Raises:
        UnknownModel: no such model, or it cannot do this kind.
        InvalidJob: more pictures than any model reads.
    """
    if job.model is not None:
        entry = models[job.model]
        if job.kind not in entry.kinds:
            raise UnknownModel(
                f"model: {entry.name!r} cannot do {job.kind}; its kinds are {', '.join(entry.kinds)}", model=entry.name
            )
        able = [entry]
    else:
        able = [entry for entry in models if job.kind in entry.kinds]
        if not able:
            raise UnknownModel(f"kind: no model in models.toml can do {job.kind}")
    images = len(job.images) if isinstance(job, VisionJob) else 0
    for entry in able:
        if images <= entry.max_images:
            return entry
    most = max(able, key=lambda entry: entry.max_images)
    raise InvalidJob(f"job refused: images: {images} are given, {most.name} reads at most {most.max_images} a job")


__all__ = ["route"]
