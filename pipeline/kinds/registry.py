"""The job kinds. A new kind is one module and one line here."""

from typing import Any

from pipeline.kinds import chat, code, completion, intent, sentiment, vision
from pipeline.kinds.kind import Kind, Measures
from pipeline.kinds.requests import Completion, CompletionRequest, EndpointProfile
from schemas.job import Job
from schemas.jobs import register_job
from schemas.results import Result, register_result

KINDS: dict[str, Kind[Any, Any]] = {}


def register(kind: Kind[Any, Any]) -> None:
    """Add a kind, and its job and result to what may be submitted and stored."""
    register_job(kind.job)
    register_result(kind.result)
    KINDS[kind.name] = kind


for _kind in (intent.KIND, sentiment.KIND, chat.KIND, code.KIND, vision.KIND, completion.KIND):
    register(_kind)


def label_words(job: Job) -> tuple[str, ...]:
    """Return the words between which a classification chooses; empty for kinds that answer in free text."""
    return KINDS[job.kind].label_words(job)


def build(job: Job, profile: EndpointProfile) -> CompletionRequest:
    """Return the engine request of a job."""
    return KINDS[job.kind].build(job, profile)


def decode(job: Job, request: CompletionRequest, completion: Completion) -> Result:
    """Return the result of a completion.

    Raises:
        InvalidOutput: the answer is not what was asked for; the attempt has failed.
    """
    result: Result = KINDS[job.kind].decode(job, request, completion)
    return result


def measures(result: Result) -> Measures:
    """Return what is counted and filtered of a result, its numbers rounded to six places."""
    found = KINDS[result.kind].measures(result)
    return Measures(found.label, _rounded(found.confidence), _rounded(found.score))


def _rounded(value: float | None) -> float | None:
    # A column of single precision refuses numbers that are almost zero.
    return None if value is None else round(value, 6)


def headline(result: Result) -> str:
    """Return a result in one line or text, for people."""
    kind = KINDS.get(result.kind)
    return result.model_dump_json() if kind is None or not isinstance(result, kind.result) else kind.headline(result)


def text_of(result: Result) -> str | None:
    """Return the answer as text; None for kinds that are answered in one piece."""
    kind = KINDS.get(result.kind)
    return kind.text(result) if kind is not None and kind.text is not None and isinstance(result, kind.result) else None


def is_answer(text: str, result: Result) -> bool:
    """Whether a streamed text is the answer that a result was made of."""
    kind = KINDS.get(result.kind)
    if kind is None or kind.is_answer is None or not isinstance(result, kind.result):
        return text_of(result) == text
    return kind.is_answer(text, result)
