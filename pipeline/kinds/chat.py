"""Chat: continue a conversation."""

from pipeline.kinds.free_text import writing_shape, written
from pipeline.kinds.requests import Answer, Ask, Target
from schemas.jobs import ChatJob
from schemas.results import ChatResult


def build(job: ChatJob, target: Target) -> Ask:
    """The request for one conversation."""
    shape = writing_shape("chat", job.sampling, target, max_tokens=512)
    return Ask(shape, tuple({"role": message.role, "content": message.content} for message in job.messages))


def read(answer: Answer) -> ChatResult:
    """The reply; InvalidOutput where it is empty."""
    return ChatResult(text=written(answer), finish_reason="length" if answer.finish_reason == "length" else "stop")


__all__ = ["build", "read"]
