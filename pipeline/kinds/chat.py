"""Chat: continue a conversation. Streamed from the engine, so that the time to the first token is known."""

from typing import Any

import orjson

from pipeline.kinds.asking import Answer, Ask, Shape
from schemas.errors import InvalidOutput
from schemas.jobs import ChatJob
from schemas.results import ChatResult

TEMPLATE_HASH = "as-given"  # nothing of ours stands around the caller's messages


def build(job: ChatJob) -> Ask:
    """The request for one conversation."""
    parameters: dict[str, Any] = job.sampling.model_dump(exclude_none=True, exclude={"stop"})
    if job.sampling.stop:
        parameters["stop"] = list(job.sampling.stop)
    key = "chat:" + orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS).decode()
    shape = Shape(key=key, prefix=(), parameters=parameters, template_hash=TEMPLATE_HASH, streamed=True)
    return Ask(shape, tuple({"role": message.role, "content": message.content} for message in job.messages))


def read(answer: Answer) -> ChatResult:
    """The reply; InvalidOutput where it is empty."""
    if not answer.text.strip():
        raise InvalidOutput("the engine answered with nothing")
    return ChatResult(text=answer.text, finish_reason="length" if answer.finish_reason == "length" else "stop")


__all__ = ["build", "read"]
