"""Which model a job goes to."""

from pipeline.models import ModelEntry, Models
from schemas.errors import UnknownModel
from schemas.jobs import Job


def route(job: Job, models: Models) -> ModelEntry:
    """The job's own choice, or the first model that can do its kind.

    Raises:
        UnknownModel: no such model, or it cannot do this kind.
    """
    if job.model is not None:
        entry = models[job.model]
        if job.kind not in entry.kinds:
            raise UnknownModel(
                f"model: {entry.name!r} cannot do {job.kind}; its kinds are {', '.join(entry.kinds)}", model=entry.name
            )
        return entry
    for entry in models:
        if job.kind in entry.kinds:
            return entry
    raise UnknownModel(f"kind: no model in models.toml can do {job.kind}")


__all__ = ["route"]
