"""What an endpoint is and supports, probed: version, simulated or not, its form of constraint, its tokens."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from pipeline.engine.client import BATCH_ROUTE, EngineClient
from pipeline.engine.responses import parse_count, parse_object, parse_text
from pipeline.kinds.requests import Constraint
from schemas.errors import EngineUnavailable, InvalidOutput

_PROBE_SECONDS = 5.0


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


async def probe(client: EngineClient, endpoint: str, model: str) -> Capabilities:
    """Ask an endpoint for its capabilities.

    Raises:
        EngineUnavailable: it does not answer, its engine is dead, it needs a key, or it serves other models.
    """
    # A server whose engine died still lists its models.
    health = await client.get(endpoint, "/health", _PROBE_SECONDS)
    if health.status_code >= 500:
        raise EngineUnavailable(
            f"{endpoint}/health answers HTTP {health.status_code}: its engine is dead", endpoint=endpoint
        )
    listing = await client.get(endpoint, "/v1/models", _PROBE_SECONDS)
    if listing.status_code in {401, 403}:
        raise EngineUnavailable(f"{endpoint} needs an API key; set AI_API_KEY", endpoint=endpoint)
    if listing.status_code != 200:
        raise EngineUnavailable(
            f"{endpoint}/v1/models answers HTTP {listing.status_code}; is it vLLM?", endpoint=endpoint
        )
    version = await client.get(endpoint, "/version", _PROBE_SECONDS)
    # An empty request is refused with 400 if the route exists, and costs nothing.
    batch = await client.post(endpoint, BATCH_ROUTE, {}, _PROBE_SECONDS)
    try:
        served = {entry["id"]: entry for entry in parse_object(listing.content)["data"]}
        versions = parse_object(version.content) if version.status_code == 200 else {}
        batch_route = batch.status_code not in {404, 405, 501}
        return _capabilities(endpoint, model, served, versions, batch_route=batch_route)
    except (InvalidOutput, KeyError, TypeError, AttributeError, ValueError) as error:
        raise EngineUnavailable(
            f"{endpoint}/v1/models is not vLLM's; is it the right port?", endpoint=endpoint
        ) from error


def _capabilities(
    endpoint: str, model: str, served: dict[str, Any], versions: dict[str, Any], *, batch_route: bool
) -> Capabilities:
    if model not in served:
        names = ", ".join(served) or "no model"
        raise EngineUnavailable(
            f"{endpoint} serves {names}, not {model}; start it with --served-model-name {model}", endpoint=endpoint
        )
    number, entry = versions.get("version"), served[model]
    revision = parse_text(entry.get("root"))
    return Capabilities(
        version=parse_text(number)[:100] if number else None,
        simulated=bool(versions.get("simulator")) or entry.get("owned_by") == "simulator",
        constraint=_constraint(number),
        revision=revision[:200] or None,
        max_model_len=parse_count(entry.get("max_model_len")),
        batch_route=batch_route,
    )


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
