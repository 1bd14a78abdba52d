"""What an endpoint is and can do, asked once: version, simulated or not, its form of constraint, its tokens."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from pipeline.engine.client import BATCH_ROUTE, EngineClient
from pipeline.engine.responses import count_of, loaded, text_of
from pipeline.kinds.requests import Constraint
from schemas.errors import EngineUnavailable, InvalidOutput

_PROBE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class EndpointFacts:
    """One endpoint.

    Attributes:
        version: of the engine; None where it has no /version.
        simulated: it says itself that it is a simulator.
        revision: what it says it serves under the model's name; vLLM gives the path of the weights.
        context_tokens: of the served model; None where it does not say.
        batch_route: it has vLLM's /v1/chat/completions/batch.
    """

    version: str | None
    simulated: bool
    constraint: Constraint
    revision: str | None
    context_tokens: int | None
    batch_route: bool

    def without_batch_route(self) -> "EndpointFacts":
        """The same, but for the batch route."""
        return replace(self, batch_route=False)


async def ask_facts(client: EngineClient, endpoint: str, model: str) -> EndpointFacts:
    """Ask an endpoint what it is.

    Raises:
        EngineUnavailable: nobody answers, its engine is dead, it wants a key, or it serves other models.
    """
    # A server whose engine died goes on listing its models.
    health = await client.get(endpoint, "/health", _PROBE_SECONDS)
    if health.status_code >= 500:
        raise EngineUnavailable(
            f"{endpoint}/health says HTTP {health.status_code}: its engine is dead", endpoint=endpoint
        )
    listing = await client.get(endpoint, "/v1/models", _PROBE_SECONDS)
    if listing.status_code in {401, 403}:
        raise EngineUnavailable(f"{endpoint} wants an API key; set AI_API_KEY", endpoint=endpoint)
    if listing.status_code != 200:
        raise EngineUnavailable(f"{endpoint}/v1/models says HTTP {listing.status_code}; is it vLLM?", endpoint=endpoint)
    version = await client.get(endpoint, "/version", _PROBE_SECONDS)
    # An empty request is refused with 400 where the route is there, and costs nothing.
    batch = await client.post(endpoint, BATCH_ROUTE, {}, _PROBE_SECONDS)
    try:
        served = {entry["id"]: entry for entry in loaded(listing.content)["data"]}
        said = loaded(version.content) if version.status_code == 200 else {}
        return _facts(endpoint, model, served, said, batch_route=batch.status_code not in {404, 405, 501})
    except (InvalidOutput, KeyError, TypeError, AttributeError, ValueError) as error:
        raise EngineUnavailable(
            f"{endpoint}/v1/models is not vLLM's; is it the right port?", endpoint=endpoint
        ) from error


def _facts(
    endpoint: str, model: str, served: dict[str, Any], said: dict[str, Any], *, batch_route: bool
) -> EndpointFacts:
    if model not in served:
        names = ", ".join(served) or "no model"
        raise EngineUnavailable(
            f"{endpoint} serves {names}, not {model}; start it with --served-model-name {model}", endpoint=endpoint
        )
    number, entry = said.get("version"), served[model]
    revision = text_of(entry.get("root"))
    return EndpointFacts(
        version=text_of(number)[:100] if number else None,
        simulated=bool(said.get("simulator")) or entry.get("owned_by") == "simulator",
        constraint=_constraint(number),
        revision=revision[:200] or None,
        context_tokens=count_of(entry.get("max_model_len")),
        batch_route=batch_route,
    )


def _constraint(version: object) -> Constraint:
    """0.12 removed the guided_ fields and ignores them silently; before, they are what works."""
    numbers = re.match(r"(\d+)\.(\d+)", str(version or ""))
    if numbers and (int(numbers[1]), int(numbers[2])) < (0, 12):
        return Constraint.GUIDED
    return Constraint.STRUCTURED_OUTPUTS


async def letters_are_tokens(client: EngineClient, endpoint: str, model: str) -> bool | None:
    """Whether each letter is one token, so that labels can be told by them; None where it has no tokenizer route.

    Raises:
        EngineError: it did not answer.
    """
    for letter in ascii_uppercase:
        body = {"model": model, "prompt": letter, "add_special_tokens": False}
        there = await client.post(endpoint, "/tokenize", body, _PROBE_SECONDS)
        if there.status_code != 200:
            return None
        tokens = loaded(there.content).get("tokens") or []
        if len(tokens) > 2:  # SentencePiece may put a lone word mark first
            return False
    return True


async def first_tokens(
    client: EngineClient, endpoint: str, model: str, words: Sequence[str]
) -> list[str | None] | None:
    """The text of each word's first token; None where the endpoint has no tokenizer routes.

    Token strings are spelled differently by every tokenizer, so the id is turned back into text.

    Raises:
        EngineError: it did not answer; ask again another time.
    """
    found: list[str | None] = []
    for word in words:
        there = await client.post(endpoint, "/tokenize", {"model": model, "prompt": word, "add_special_tokens": False})
        if there.status_code != 200:
            return None
        text = ""
        # SentencePiece may put a lone word mark first: it is not what the model answers with.
        for token in (loaded(there.content).get("tokens") or [])[:2]:
            back = await client.post(endpoint, "/detokenize", {"model": model, "tokens": [token]})
            if back.status_code != 200:
                return None
            text = str(loaded(back.content).get("prompt", "")).strip()
            if text:
                break
        found.append(text or None)
    return found


__all__ = ["EndpointFacts", "ask_facts", "first_tokens", "letters_are_tokens"]
