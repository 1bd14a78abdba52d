"""Probabilities of written tokens and their alternatives, in both of vLLM's shapes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import log
from operator import itemgetter
from typing import Any
from zlib import crc32

from simulator.answers import Paths, Plan
from simulator.tokens import END, Tokenizer

Ranked = list[tuple[str, float]]

_value = itemgetter(1)

_MASKED = -9999.0
_LABEL_MASS = 0.9
_FILLERS = (
    "The",
    "I",
    "Sure",
    " the",
    "\n",
    "It",
    "This",
    "Answer",
    "Based",
    "好",
    "您",
    "-",
    "**",
    "We",
    "To",
    "A",
    "在",
)
_SPECIALS = ("<unk>", "<|observation|>", "<s>", "<|system|>", "<|user|>", "<|assistant|>", END)
_PADDING: Ranked = [(token, _MASKED) for token in (*_SPECIALS, *_FILLERS)]


def positions(
    plan: Plan, places: range, top: int, wanted_ids: tuple[int, ...] | None, tokenizer: Tokenizer
) -> list[tuple[float, Ranked]]:
    """For each token at these places: its logprob, and `top` tokens with theirs.

    The written token comes first, whether or not it is among the likeliest; with `logprob_token_ids` exactly those
    tokens follow it.
    """
    found = []
    for place in places:
        token = plan.tokens[place]
        ranked = _at(plan, place, max(top, 1))
        if ranked[0][0] == token and wanted_ids is None:
            found.append((ranked[0][1], ranked[:top]))
            continue
        own = next((value for name, value in ranked if name == token), _MASKED)
        if wanted_ids is not None:
            values = dict(ranked)
            others = [tokenizer.token(one) or "" for one in wanted_ids]
            listed = [(token, own), *((name, values.get(name, -20.0)) for name in others if name != token)]
        else:
            listed = [(token, own), *(pair for pair in ranked if pair[0] != token)][:top]
        found.append((own, listed))
    return found


def chat_shape(found: Sequence[tuple[float, Ranked]], tokens: Sequence[str]) -> dict[str, Any]:
    """As /v1/chat/completions shows them."""
    content = []
    for (own, ranked), token in zip(found, tokens, strict=False):
        listed = [{"token": name, "logprob": value, "bytes": _bytes_of(name)} for name, value in ranked]
        content.append({"token": token, "logprob": own, "bytes": _bytes_of(token), "top_logprobs": listed})
    return {"content": content}


def completion_shape(found: Sequence[tuple[float, Ranked]], tokens: Sequence[str], offset: int = 0) -> dict[str, Any]:
    """As /v1/completions shows them; offsets count characters from the start of the text."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += 0 if token == END else len(token)
    return {
        "text_offset": offsets,
        "token_logprobs": [own for own, _ in found],
        "tokens": list(tokens),
        "top_logprobs": [dict(ranked) for _, ranked in found],
    }


@lru_cache(maxsize=8192)
def _bytes_of(token: str) -> list[int]:
    return list(token.encode("utf-8", "surrogatepass"))


def _at(plan: Plan, place: int, top: int) -> Ranked:
    """Tokens and logprobs at one place, likeliest first, at least `top` of them where the vocabulary allows."""
    if plan.paths is None:
        return _free(plan.tokens[place], place)
    shares = _shares(plan, place)
    if not plan.masked:
        return _raw(shares)
    ranked = list(zip(shares, map(log, shares.values()), strict=True))
    ranked.sort(key=_value, reverse=True)
    if len(ranked) < top:
        ranked += [pair for pair in _PADDING if pair[0] not in shares][: top - len(ranked)]
    return ranked


@lru_cache(maxsize=512)
def _first_tokens(paths: Paths) -> tuple[str, ...] | None:
    """The first token of each option; None where two options share one."""
    firsts = tuple(path[0] for path in paths)
    return firsts if len(set(firsts)) == len(firsts) else None


def _shares(plan: Plan, place: int) -> dict[str, float]:
    """Probability of each token that can follow what is written, given the options that are still possible."""
    paths = plan.paths or ()
    shares: dict[str, float] = {}
    if place == 0 or not plan.masked:
        firsts = _first_tokens(paths)
        if firsts is not None:
            return dict(zip(firsts, plan.weights, strict=True))
        for path, weight in zip(paths, plan.weights, strict=True):
            shares[path[0]] = shares.get(path[0], 0.0) + weight
        return shares
    written = tuple(plan.tokens[:place])
    for path, weight in zip(paths, plan.weights, strict=True):
        if path[:place] == written and len(path) > place:
            shares[path[place]] = shares.get(path[place], 0.0) + weight
    total = sum(shares.values()) or 1.0
    return {token: share / total for token, share in shares.items()}


def _raw(shares: dict[str, float]) -> Ranked:
    """Labels share nine tenths of the mass, what a model says instead of a label has the rest."""
    ranked = [(token, log(_LABEL_MASS * share + 1e-9)) for token, share in shares.items()]
    rest = 1.0 - _LABEL_MASS
    for filler in _FILLERS:
        rest *= 0.5
        if filler not in shares:
            ranked.append((filler, log(rest)))
    ranked.sort(key=_value, reverse=True)
    return ranked


def _free(token: str, place: int) -> Ranked:
    own = 0.35 + 0.6 * (crc32(token.encode("utf-8", "surrogatepass"), place) % 1000) / 1000
    ranked = [(token, log(own))]
    rest = 1.0 - own
    for filler in _FILLERS:
        rest *= 0.5
        if filler != token:
            ranked.append((filler, log(rest)))
    ranked.sort(key=_value, reverse=True)
    return ranked
