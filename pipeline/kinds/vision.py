"""Vision: a question about images, answered in text or in JSON."""

from typing import Any

from pipeline.kinds.exact_json import parse_exact
from pipeline.kinds.free_text import finish_reason, free_text_template, require_text, system_messages
from pipeline.kinds.kind import Kind
from pipeline.kinds.requests import Completion, CompletionRequest, Constraint, EndpointProfile
from schemas.answer_schema import conforms
from schemas.errors import InvalidOutput
from schemas.jobs import VisionJob
from schemas.results import VisionResult


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
    parsed = parse_exact(text)
    if not conforms(parsed, job.answer_schema):
        raise InvalidOutput(
            "the engine's JSON does not conform to answer_schema; does the endpoint honour structured outputs?"
        )
    return VisionResult(text=text, answer=parsed, finish_reason=finish)


def _text(result: VisionResult) -> str:
    return result.text


KIND = Kind("vision", VisionJob, VisionResult, build, decode, headline=_text, text=_text)
