"""Logprobs of generated tokens and their alternatives, in both of vLLM's formats."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import log
from operator import itemgetter
from typing import Any
from zlib import crc32

from simulator.answers.planner import OptionTokens, Plan
from simulator.requests.tokens import EOS, Tokenizer

RankedTokens = list[tuple[str, float]]

_logprob = itemgetter(1)

_MASKED = -9999.0
_LABEL_PROBABILITY = 0.9
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
_SPECIALS = ("<unk>", "<|observation|>", "<s>", "<|system|>", "<|user|>", "<|assistant|>", EOS)
_PADDING: RankedTokens = [(token, _MASKED) for token in (*_SPECIALS, *_FILLERS)]


def compute_logprobs(
    plan: Plan, positions: range, top: int, wanted_ids: tuple[int, ...] | None, tokenizer: Tokenizer
) -> list[tuple[float, RankedTokens]]:
    """Compute the logprob of the token at each position, and `top` tokens with their logprobs.

    The generated token comes first, whether or not it is among the most probable ones. With
    `logprob_token_ids`, exactly those tokens follow it.

    Args:
        plan: the answer.
        positions: indices of tokens of the answer.
        top: number of alternatives for each token.
        wanted_ids: `logprob_token_ids` of the request.
        tokenizer: maps these ids to tokens.

    """
    computed = []
    for position in positions:
        token = plan.tokens[position]
        ranked = _rank_tokens(plan, position, max(top, 1))
        if ranked[0][0] == token and wanted_ids is None:
            computed.append((ranked[0][1], ranked[:top]))
            continue
        own = next((value for name, value in ranked if name == token), _MASKED)
        if wanted_ids is not None:
            values = dict(ranked)
            others = [tokenizer.id_to_token(token_id) or "" for token_id in wanted_ids]
            listed = [(token, own), *((name, values.get(name, -20.0)) for name in others if name != token)]
        else:
            listed = [(token, own), *(pair for pair in ranked if pair[0] != token)][:top]
        computed.append((own, listed))
    return computed


def format_chat_logprobs(computed: Sequence[tuple[float, RankedTokens]], tokens: Sequence[str]) -> dict[str, Any]:
    """Format logprobs as /v1/chat/completions returns them."""
    content = []
    for (own, ranked), token in zip(computed, tokens, strict=False):
        listed = [{"token": name, "logprob": value, "bytes": _bytes_of(name)} for name, value in ranked]
        content.append({"token": token, "logprob": own, "bytes": _bytes_of(token), "top_logprobs": listed})
    return {"content": content}


def format_completion_logprobs(
    computed: Sequence[tuple[float, RankedTokens]], tokens: Sequence[str], offset: int = 0
) -> dict[str, Any]:
    """Format logprobs as /v1/completions returns them.

    Offsets count characters from the start of the text.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += 0 if token == EOS else len(token)
    return {
        "text_offset": offsets,
        "token_logprobs": [own for own, _ in computed],
        "tokens": list(tokens),
        "top_logprobs": [dict(ranked) for _, ranked in computed],
    }


@lru_cache(maxsize=8192)
def _bytes_of(token: str) -> list[int]:
    return list(token.encode("utf-8", "surrogatepass"))


def _rank_tokens(plan: Plan, position: int, top: int) -> RankedTokens:
    """Return tokens and logprobs at one position, the most probable first.

    There are at least `top` of them where the vocabulary allows.
    """
    if plan.option_tokens is None:
        return _rank_free_text(plan.tokens[position], position)
    probabilities = _next_token_probabilities(plan, position)
    if not plan.masked:
        return _rank_unmasked(probabilities)
    ranked = list(zip(probabilities, map(log, probabilities.values()), strict=True))
    ranked.sort(key=_logprob, reverse=True)
    if len(ranked) < top:
        ranked += [pair for pair in _PADDING if pair[0] not in probabilities][: top - len(ranked)]
    return ranked


@lru_cache(maxsize=512)
def _first_tokens(option_tokens: OptionTokens) -> tuple[str, ...] | None:
    """Return the first token of each option; None when two options have the same one."""
    firsts = tuple(tokens[0] for tokens in option_tokens)
    return firsts if len(set(firsts)) == len(firsts) else None


def _next_token_probabilities(plan: Plan, position: int) -> dict[str, float]:
    """Return the probability of each possible next token, given the tokens generated so far."""
    option_tokens = plan.option_tokens or ()
    sums: dict[str, float] = {}
    if position == 0 or not plan.masked:
        firsts = _first_tokens(option_tokens)
        if firsts is not None:
            return dict(zip(firsts, plan.probabilities, strict=True))
        for tokens, probability in zip(option_tokens, plan.probabilities, strict=True):
            sums[tokens[0]] = sums.get(tokens[0], 0.0) + probability
        return sums
    generated = tuple(plan.tokens[:position])
    for tokens, probability in zip(option_tokens, plan.probabilities, strict=True):
        if tokens[:position] == generated and len(tokens) > position:
            sums[tokens[position]] = sums.get(tokens[position], 0.0) + probability
    total = sum(sums.values()) or 1.0
    return {token: part / total for token, part in sums.items()}


def _rank_unmasked(probabilities: dict[str, float]) -> RankedTokens:
    """Rank tokens before the constraint.

    Labels have nine tenths of the probability; the rest goes to tokens that a model could write
    instead of a label.
    """
    ranked = [(token, log(_LABEL_PROBABILITY * share + 1e-9)) for token, share in probabilities.items()]
    rest = 1.0 - _LABEL_PROBABILITY
    for filler in _FILLERS:
        rest *= 0.5
        if filler not in probabilities:
            ranked.append((filler, log(rest)))
    ranked.sort(key=_logprob, reverse=True)
    return ranked


def _rank_free_text(token: str, position: int) -> RankedTokens:
    own = 0.35 + 0.6 * (crc32(token.encode("utf-8", "surrogatepass"), position) % 1000) / 1000
    ranked = [(token, log(own))]
    rest = 1.0 - own
    for filler in _FILLERS:
        rest *= 0.5
        if filler != token:
            ranked.append((filler, log(rest)))
    ranked.sort(key=_logprob, reverse=True)
    return ranked
