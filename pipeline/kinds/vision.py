"""Vision: a question about images, answered in text or in JSON."""

from typing import Any

import orjson

from pipeline.kinds.free_text import finish_reason, free_text_template, require_text, system_messages
from pipeline.kinds.kind import Kind
from pipeline.kinds.requests import Completion, CompletionRequest, Constraint, EndpointProfile
from schemas.answer_schema import conforms
from schemas.errors import InvalidOutput
from schemas.jobs import VisionJob
from schemas.results import VisionResult

_MAX_DEPTH = 100


def build(job: VisionJob, profile: EndpointProfile) -> CompletionRequest:
    """Return the request of one question; the images come before it, as vision models are trained."""
    template = free_text_template(
        "vision",
        job.sampling,
        profile,
        max_tokens=512,
        words=profile.system_prompt,
        **_constraint(job.answer_schema, profile.constraint),
    )
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": image}} for image in job.images]
    content.append({"type": "text", "text": job.question})
    return CompletionRequest(template, (*system_messages(profile), {"role": "user", "content": content}))


def _constraint(schema: dict[str, Any] | None, constraint: Constraint) -> dict[str, Any]:
    if schema is None:
        return {}
    if constraint is Constraint.STRUCTURED_OUTPUTS:
        return {"structured_outputs": {"json": schema}}
    return {"guided_json": schema}


def decode(job: VisionJob, _request: CompletionRequest, completion: Completion) -> VisionResult:
    """Return the answer; InvalidOutput where it is empty or does not conform to the schema."""
    text, finish = require_text(completion), finish_reason(completion)
    if job.answer_schema is None:
        return VisionResult(text=text, finish_reason=finish)
    if finish == "length":
        raise InvalidOutput("the JSON was cut off; raise sampling.max_tokens or ask for less")
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidOutput("the engine's answer is not JSON") from error
    if not _can_be_stored(parsed):
        raise InvalidOutput(f"the engine's JSON is nested deeper than {_MAX_DEPTH} levels")
    if not conforms(parsed, job.answer_schema):
        raise InvalidOutput(
            "the engine's JSON does not conform to answer_schema; does the endpoint honour structured outputs?"
        )
    return VisionResult(text=text, answer=parsed, finish_reason=finish)


def _can_be_stored(answer: Any) -> bool:
    """Whether pydantic can write it again; its limit is some 250 levels."""
    level = [answer]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return True
    return False


def _text(result: VisionResult) -> str:
    return result.text


KIND = Kind("vision", VisionJob, VisionResult, build, decode, headline=_text, text=_text)
