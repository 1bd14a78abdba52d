"""Vision: a question about pictures, answered in text or in JSON."""

from typing import Any, Literal

import orjson

from pipeline.kinds.free_text import opening, writing_shape, written
from pipeline.kinds.requests import Answer, Ask, Constraint, Target
from schemas.answer_schema import obeys
from schemas.errors import InvalidOutput
from schemas.jobs import VisionJob
from schemas.results import VisionResult

_DEEPEST = 100


def build(job: VisionJob, target: Target) -> Ask:
    """The request for one question; the pictures come before it, as every vision model was trained."""
    constraint: dict[str, Any] = {}
    if job.answer_schema is not None:
        structured = target.constraint is Constraint.STRUCTURED_OUTPUTS
        constraint = (
            {"structured_outputs": {"json": job.answer_schema}} if structured else {"guided_json": job.answer_schema}
        )
    shape = writing_shape("vision", job.sampling, target, max_tokens=512, words=target.system_prompt, **constraint)
    content = [{"type": "image_url", "image_url": {"url": image}} for image in job.images]
    return Ask(
        shape, (*opening(target), {"role": "user", "content": [*content, {"type": "text", "text": job.question}]})
    )


def read(job: VisionJob, answer: Answer) -> VisionResult:
    """The answer; InvalidOutput where it is empty, or not what the schema asks for."""
    text = written(answer)
    finish: Literal["stop", "length"] = "length" if answer.finish_reason == "length" else "stop"
    if job.answer_schema is None:
        return VisionResult(text=text, finish_reason=finish)
    if finish == "length":
        raise InvalidOutput("the JSON was cut off; raise sampling.max_tokens or ask for less")
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidOutput("the engine answered with something that is not JSON") from error
    if not _can_be_stored(parsed):
        raise InvalidOutput(f"the engine's JSON is nested deeper than {_DEEPEST} levels")
    if not obeys(parsed, job.answer_schema):
        raise InvalidOutput(
            "the engine's JSON does not obey answer_schema; does the endpoint honour structured outputs?"
        )
    return VisionResult(text=text, answer=parsed, finish_reason=finish)


def _can_be_stored(answer: Any) -> bool:
    """Whether pydantic will write it again: it goes some 250 levels deep."""
    level = [answer]
    for _ in range(_DEEPEST):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return True
    return False


__all__ = ["build", "read"]
