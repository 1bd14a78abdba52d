"""Chat: continue a conversation."""

from pipeline.kinds.free_text import finish_reason, free_text_template, require_text
from pipeline.kinds.kind import Kind
from pipeline.kinds.requests import Completion, CompletionRequest, EndpointProfile
from schemas.jobs import ChatJob
from schemas.results import ChatResult


def build(job: ChatJob, profile: EndpointProfile) -> CompletionRequest:
    """Return the request of one conversation."""
    template = free_text_template("chat", job.sampling, profile, max_tokens=512)
    messages = tuple({"role": message.role, "content": message.content} for message in job.messages)
    return CompletionRequest(template, messages)


def decode(_job: ChatJob, _request: CompletionRequest, completion: Completion) -> ChatResult:
    """Return the reply; InvalidOutput where it is empty."""
    return ChatResult(text=require_text(completion), finish_reason=finish_reason(completion))


def _text(result: ChatResult) -> str:
    return result.text


KIND = Kind("chat", ChatJob, ChatResult, build, decode, headline=_text, text=_text)
