"""What an endpoint is and supports, probed: version, simulated or not, its form of constraint, its tokens."""

import asyncio
import re
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from pipeline.engine.client import BATCH_ROUTE, CHAT_ROUTE, EngineClient, Reply
from pipeline.engine.errors import from_status
from pipeline.engine.metrics import EngineMetrics, poll_metrics
from pipeline.engine.responses import parse_count, parse_object
from pipeline.kinds.requests import Constraint
from schemas.errors import (
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    InvalidOutput,
    RequestRejected,
)

_PROBE_SECONDS = 5.0
_PING = [{"role": "user", "content": "ping"}]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """One endpoint.

    Attributes:
        version: of the engine; None if it has no /version.
        simulated: whether it reports that it is a simulator.
        revision: what it serves under the model's name; vLLM gives the path of the weights.
        max_model_len: tokens that the served model reads; None if not reported.
        batch_route: whether it has vLLM's /v1/chat/completions/batch.
    """

    version: str | None
    simulated: bool
    constraint: Constraint
    revision: str | None
    max_model_len: int | None
    batch_route: bool

    def without_batch_route(self) -> "Capabilities":
        """Return the same without the batch route."""
        return replace(self, batch_route=False)


async def probe(client: EngineClient, endpoint: str, model: str, *, prove: bool = False) -> Capabilities:
    """Ask an endpoint for its capabilities; takes 5 s at most.

    Args:
        client: HTTP client.
        endpoint: base URL.
        model: the name that the engine serves it under.
        prove: ask for what the work asks for too, one token alone and one in a micro-batch. An endpoint
            that fails all work may still be healthy and list its models.

    Raises:
        EngineError: it does not answer, its engine is dead, it needs a key, serves other models, or fails the work.
    """
    async with asyncio.TaskGroup() as group:
        health = group.create_task(_caught(client.get(endpoint, "/health", _PROBE_SECONDS)))
        listing = group.create_task(_caught(client.get(endpoint, "/v1/models", _PROBE_SECONDS)))
        version = group.create_task(_caught(client.get(endpoint, "/version", _PROBE_SECONDS)))
        # An empty request is refused with 400 if the route exists, and costs nothing.
        body = _one_token(model, [_PING]) if prove else {}
        batch = group.create_task(_caught(client.post(endpoint, BATCH_ROUTE, body, _PROBE_SECONDS)))
        single = group.create_task(_caught(_prove_single(client, endpoint, model))) if prove else None
        metrics = group.create_task(poll_metrics(client, endpoint, model) if prove else _nothing())
    # A server whose engine died still lists its models.
    if _got(health).status_code >= 500:
        raise EngineUnavailable(
            f"{endpoint}/health answers HTTP {_got(health).status_code}: its engine is dead", endpoint=endpoint
        )
    models = _got(listing)
    if models.status_code != 200:
        raise _refusal(models, endpoint)
    try:
        served = {entry["id"]: entry for entry in parse_object(models.content)["data"]}
        versions = parse_object(_got(version).content) if _got(version).status_code == 200 else {}
        batch_route = _has_batch_route(_got(batch), endpoint)
        found = _capabilities(endpoint, model, served, versions, batch_route=batch_route)
    except (InvalidOutput, KeyError, TypeError, AttributeError, ValueError) as error:
        raise EngineUnavailable(
            f"{endpoint}/v1/models is not vLLM's; is it the right port?", endpoint=endpoint
        ) from error
    if single is not None:
        await _check_work(client, endpoint, model, single.result(), metrics.result())
    return found


async def _check_work(
    client: EngineClient, endpoint: str, model: str, found: Reply | EngineError, before: EngineMetrics | None
) -> None:
    """Raise what became of the work; an engine that is too full to answer a probe in time but works is well."""
    if not isinstance(found, EngineError):
        return
    if isinstance(found, EngineTimeout) and before is not None and before.tokens is not None:
        after = await poll_metrics(client, endpoint, model)
        if after is not None and after.tokens != before.tokens:
            return
    raise found


def _one_token(model: str, messages: Sequence[Any]) -> dict[str, Any]:
    return {"model": model, "messages": messages, "max_tokens": 1, "temperature": 0.0}


async def _nothing() -> None:
    return None


async def _caught(asked: Coroutine[Any, Any, Reply]) -> Reply | EngineError:
    try:
        return await asked
    except EngineError as error:
        return error


def _got(task: "asyncio.Task[Reply | EngineError]") -> Reply:
    found = task.result()
    if isinstance(found, EngineError):
        raise found
    return found


def _refusal(reply: Reply, endpoint: str) -> EngineError:
    error = from_status(reply.status_code, reply.headers, reply.content, endpoint)
    if isinstance(error, EngineUnavailable | EngineOverloaded):
        return error
    return EngineUnavailable(f"{endpoint}/v1/models answers HTTP {reply.status_code}; is it vLLM?", endpoint=endpoint)


async def _prove_single(client: EngineClient, endpoint: str, model: str) -> Reply:
    """Ask for one token; any refusal that is about this request shows as much as an answer."""
    reply = await client.post(endpoint, CHAT_ROUTE, _one_token(model, _PING), _PROBE_SECONDS)
    if reply.status_code != 200:
        error = from_status(reply.status_code, reply.headers, reply.content, endpoint)
        if not isinstance(error, RequestRejected):
            raise error
    elif not _is_completion(reply.content):
        raise EngineUnavailable(
            f"{endpoint} answers a request with something else than a completion", endpoint=endpoint
        )
    return reply


def _is_completion(body: bytes) -> bool:
    try:
        return bool(parse_object(body).get("choices"))
    except InvalidOutput:
        return False


def _has_batch_route(reply: Reply, endpoint: str) -> bool:
    """Whether rows may be sent together; a refusal that is about the way there is the way's of all work."""
    if reply.status_code in {404, 405, 501}:
        return False
    if reply.status_code != 200:
        error = from_status(reply.status_code, reply.headers, reply.content, endpoint)
        if isinstance(error, EngineUnavailable | EngineFailed):
            raise error
    return True


def _capabilities(
    endpoint: str, model: str, served: dict[str, Any], versions: dict[str, Any], *, batch_route: bool
) -> Capabilities:
    if model not in served:
        names = ", ".join(map(str, served)) or "no model"
        raise EngineUnavailable(
            f"{endpoint} serves {names[:300]}, not {model}; start it with --served-model-name {model}, or write its name "
            "as served_name into models.toml",
            endpoint=endpoint,
        )
    number, entry = _text(versions.get("version")), served[model]
    return Capabilities(
        version=number[:100] or None,
        simulated=bool(versions.get("simulator")) or entry.get("owned_by") == "simulator",
        constraint=_constraint(number),
        revision=_text(entry.get("root"))[:200] or None,
        max_model_len=parse_count(entry.get("max_model_len")) or None,
        batch_route=batch_route,
    )


def _text(value: object) -> str:
    """Return what can be stored of a text; what is no text is as good as missing."""
    return value.replace("\x00", "") if isinstance(value, str) else ""


def _constraint(version: object) -> Constraint:
    """Return the form of constraint: 0.12 removed the guided_ fields and ignores them silently; earlier versions need them."""
    numbers = re.match(r"(\d+)\.(\d+)", str(version or ""))
    if numbers and (int(numbers[1]), int(numbers[2])) < (0, 12):
        return Constraint.GUIDED
    return Constraint.STRUCTURED_OUTPUTS


async def letters_are_tokens(client: EngineClient, endpoint: str, model: str) -> bool | None:
    """Whether each letter is one token, so that it can stand for a label; None if there is no tokenizer route.

    Raises:
        EngineError: the endpoint did not answer.
    """
    for letter in ascii_uppercase:
        body = {"model": model, "prompt": letter, "add_special_tokens": False}
        response = await client.post(endpoint, "/tokenize", body, _PROBE_SECONDS)
        if response.status_code != 200:
            return None
        tokens = parse_object(response.content).get("tokens") or []
        if len(tokens) > 2:  # SentencePiece may put a lone word mark first
            return False
    return True


async def first_tokens(
    client: EngineClient, endpoint: str, model: str, words: Sequence[str]
) -> list[str | None] | None:
    """Return the text of each word's first token; None if the endpoint has no tokenizer routes.

    Token strings are spelled differently by every tokenizer, so the id is turned back into text.

    Raises:
        EngineError: the endpoint did not answer; ask again another time.
    """
    found: list[str | None] = []
    for word in words:
        body = {"model": model, "prompt": word, "add_special_tokens": False}
        response = await client.post(endpoint, "/tokenize", body)
        if response.status_code != 200:
            return None
        text = ""
        # SentencePiece may put a lone word mark first: the model does not answer with it.
        for token in (parse_object(response.content).get("tokens") or [])[:2]:
            back = await client.post(endpoint, "/detokenize", {"model": model, "tokens": [token]})
            if back.status_code != 200:
                return None
            text = str(parse_object(back.content).get("prompt", "")).strip()
            if text:
                break
        found.append(text or None)
    return found
