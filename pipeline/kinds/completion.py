"""Completion: an OpenAI chat body as it is, answered with the engine's whole body."""

from typing import Any

import orjson

from pipeline.kinds.free_text import WORDS_AS_GIVEN
from pipeline.kinds.kind import Kind
from pipeline.kinds.requests import Completion, CompletionRequest, EndpointProfile, RequestTemplate
from schemas.completions import NOT_SENT, CompletionJob, UsageMode
from schemas.errors import InvalidOutput
from schemas.results import CompletionResult


def build(job: CompletionJob, profile: EndpointProfile) -> CompletionRequest:
    """Return the request: the body without what we say ourselves, and without fields that are null."""
    parameters = {name: value for name, value in job.body.items() if value is not None and name not in NOT_SENT}
    if profile.stop_token_ids:
        parameters["stop_token_ids"] = sorted({*profile.stop_token_ids, *parameters.get("stop_token_ids", ())})
    alone = job.usage_mode is UsageMode.EXACT or "tools" in parameters or parameters.get("n", 1) > 1
    template = RequestTemplate(
        key=f"completion:{orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS).decode()}",
        prefix=(),
        parameters=parameters,
        template_hash=WORDS_AS_GIVEN,
        free_text=alone,
        whole_body=True,
    )
    return CompletionRequest(template, tuple(job.body["messages"]))


def decode(job: CompletionJob, _request: CompletionRequest, completion: Completion) -> CompletionResult:
    """Return the engine's body.

    Raises:
        InvalidOutput: a choice is missing or empty, or a constraint was dropped on the way.
    """
    body = completion.body
    if body is None:
        raise InvalidOutput("the engine's answer came without its body")
    choices = body["choices"]
    if len(choices) != (job.body.get("n") or 1):
        raise InvalidOutput("the engine answered with another number of choices than was asked for")
    for choice in choices:
        _check(job, choice)
    return CompletionResult(body=body)


def _check(job: CompletionJob, choice: Any) -> None:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise InvalidOutput("the engine's answer is not a chat completion")
    text, calls = message.get("content"), message.get("tool_calls")
    if not (text or calls or message.get("reasoning") or message.get("reasoning_content") or message.get("refusal")):
        raise InvalidOutput("the engine answered with an empty text")
    cut = choice.get("finish_reason") == "length"
    wanted = job.body.get("tool_choice")
    if not calls and not cut and (wanted == "required" or isinstance(wanted, dict)):
        raise InvalidOutput("the engine called no tool, which tool_choice asks for; does the endpoint honour it?")
    form = (job.body.get("response_format") or {}).get("type")
    if form in {"json_object", "json_schema"} and not calls and not cut:
        try:
            orjson.loads(text or "")
        except orjson.JSONDecodeError:
            raise InvalidOutput("the engine's answer is not JSON; does the endpoint honour response_format?") from None


def _text(result: CompletionResult) -> str:
    message = result.body["choices"][0]["message"]
    calls = message.get("tool_calls")
    return message.get("content") or (orjson.dumps(calls).decode() if calls else "")


KIND = Kind("completion", CompletionJob, CompletionResult, build, decode, headline=_text)
