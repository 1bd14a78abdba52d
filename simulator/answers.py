"""Decides, before a token is written, what an answer will be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from zlib import crc32

import orjson

from simulator.classifier import scorer_for
from simulator.constraints import Choice, JsonText
from simulator.conversation import Prompt
from simulator.json_values import ValueWriter
from simulator.patterns import matching_text
from simulator.sampling import Sampling
from simulator.speech import reply
from simulator.tokens import END, Tokenizer, split

Paths = tuple[tuple[str, ...], ...]

_LINES = re.compile(r"[^\n]*[:：][^\n]*")


@dataclass(slots=True)
class Plan:
    """An answer as it will be written.

    Attributes:
        tokens: all tokens, with the end token where the model stops by itself.
        text: what they spell, without the end token.
        finish_reason: `stop`, `length` or `abort`.
        stop_reason: the stop string that ended it.
        paths: tokens of each option, when one of several was chosen.
        weights: their probabilities, adding up to 1.
        masked: logprobs are those after the constraint; vLLM applies a grammar to the logits before it takes them, and
            `allowed_token_ids` after.

    """

    tokens: Sequence[str]
    text: str
    finish_reason: str
    stop_reason: str | None = None
    paths: Paths | None = None
    weights: Sequence[float] = ()
    masked: bool = True

    def text_of(self, count: int) -> str:
        """The text of its first tokens."""
        if count >= len(self.tokens):
            return self.text
        return "".join(token for token in self.tokens[:count] if token != END)

    def cut(self, count: int, finish_reason: str) -> Plan:
        """The same answer, ended early."""
        tokens = self.tokens[:count]
        return Plan(tokens, self.text_of(count), finish_reason, None, self.paths, self.weights, self.masked)


class Answerer:
    """Knows what to say; the same prompt, sampling and seed always give the same answer."""

    def __init__(self, seed: int, max_model_len: int, tokenizer: Tokenizer) -> None:
        self._seed = seed
        self._max_model_len = max_model_len
        self._tokenizer = tokenizer

    def plan(self, prompt: Prompt, sampling: Sampling, variant: int = 0) -> Plan:
        """The answer to a prompt; `variant` counts the answers of one prompt when `n` is above 1.

        Raises:
            RequestRejected: 400, where the constraint asks for more than the simulator can do.

        """
        seed = self._seed + 7919 * variant + (sampling.seed or 0)
        constraint = sampling.constraint
        limit = self._limit(prompt, sampling)
        if isinstance(constraint, Choice):
            paths = paths_of(constraint.options)
            return self._choice(prompt, sampling, constraint.options, paths, seed, limit)
        if constraint is None and sampling.allowed_token_ids is not None:
            return self._allowed(prompt, sampling, seed, limit)
        if constraint is None:
            text = reply(prompt.question, seed, prompt.images)
        elif isinstance(constraint, JsonText):
            text = self._json(prompt, constraint, seed)
        else:
            text = matching_text(constraint.regex, self._random(prompt, seed))
        return self.said(text, prompt, sampling, constrained=constraint is not None)

    def said(self, text: str, prompt: Prompt, sampling: Sampling, constrained: bool = False) -> Plan:
        """The plan that says this text, as far as stop strings and limits allow."""
        limit = self._limit(prompt, sampling)
        stop_reason = None
        for stop in sampling.stop:
            place = text.find(stop) if stop else -1
            if place >= 0:
                text, stop_reason = text[:place], stop
        tokens = split(text)
        least = limit if sampling.ignore_eos else min(sampling.min_tokens, limit)
        if tokens and not constrained and stop_reason is None and len(tokens) < least:
            tokens = (tokens * (least // len(tokens) + 1))[:least]
        return _limited([*tokens, END], limit, stop_reason)

    def _limit(self, prompt: Prompt, sampling: Sampling) -> int:
        room = self._max_model_len - len(prompt.tokens)
        return room if sampling.max_tokens is None else min(room, sampling.max_tokens)

    def _random(self, prompt: Prompt, seed: int) -> Random:
        return Random(crc32(prompt.question.encode("utf-8", "surrogatepass"), seed & 0xFFFFFFFF))

    def _weights(self, prompt: Prompt, options: tuple[str, ...], seed: int) -> list[float]:
        instructions = prompt.instructions
        if (not instructions and ":" in prompt.question) or "：" in prompt.question:
            instructions = instructions or _option_lines(prompt.question, options)
        return scorer_for(options, instructions).probabilities(prompt.question, seed)

    def _choice(
        self, prompt: Prompt, sampling: Sampling, options: tuple[str, ...], paths: Paths, seed: int, limit: int
    ) -> Plan:
        weights = self._weights(prompt, options, seed)
        chosen = _pick(weights, sampling.temperature, prompt.question, seed)
        path = paths[chosen]
        if len(path) <= limit:
            return Plan(path, options[chosen], "stop", None, paths, weights)
        return Plan(path[:limit], "".join(path[:limit]), "length", None, paths, weights)

    def _allowed(self, prompt: Prompt, sampling: Sampling, seed: int, limit: int) -> Plan:
        tokens = self._tokens_of(sampling.allowed_token_ids or (), prompt)
        options = tuple(token.strip() or token for token in tokens)
        weights = self._weights(prompt, options, seed)
        chosen = tokens[_pick(weights, sampling.temperature, prompt.question, seed)]
        plan = _limited([chosen, END], limit, None) if END in tokens else _limited([chosen] * limit, limit, None)
        plan.paths, plan.weights, plan.masked = tuple((token,) for token in tokens), weights, False
        return plan

    def _tokens_of(self, ids: tuple[int, ...], prompt: Prompt) -> list[str]:
        tokens = [self._tokenizer.token(one) for one in ids]
        if None in tokens:
            # After a restart nothing was given out yet; labels stand in the prompt, and letters are cheap to try.
            self._tokenizer.ids(prompt.tokens)
            self._tokenizer.ids(chr(code) for code in range(32, 127))
            self._tokenizer.ids(token.strip() for token in prompt.tokens if token.strip())
            tokens = [self._tokenizer.token(one) for one in ids]
        return [token or "" for token in tokens]

    def _json(self, prompt: Prompt, constraint: JsonText, seed: int) -> str:
        if constraint.schema is None:
            sentence = reply(prompt.question, seed, prompt.images)
            return orjson.dumps({"answer": sentence, "simulated": True}).decode()

        def choose(options: Sequence[str], name: str) -> str:
            weights = self._weights(prompt, tuple(options), seed)
            return options[_pick(weights, 0.0, name, seed)]

        sentence = "".join(split(reply(prompt.question, seed, prompt.images))[:12])
        writer = ValueWriter(constraint.schema, choose, self._random(prompt, seed), sentence)
        return orjson.dumps(writer.value()).decode()


@lru_cache(maxsize=512)
def paths_of(options: tuple[str, ...]) -> Paths:
    """The tokens of each option, with the end token."""
    return tuple((*split(option), END) for option in options)


def _limited(tokens: Sequence[str], limit: int, stop_reason: str | None) -> Plan:
    kept = tokens[:limit]
    text = "".join(token for token in kept if token != END)
    if kept and kept[-1] == END:
        return Plan(kept, text, "stop", stop_reason)
    return Plan(kept, text, "length")


def _pick(weights: Sequence[float], temperature: float, text: str, seed: int) -> int:
    if temperature == 0:
        return max(range(len(weights)), key=weights.__getitem__)
    scaled = [weight ** (1.0 / temperature) for weight in weights]
    mark = crc32(text.encode("utf-8", "surrogatepass"), (seed ^ 0x5BD1E995) & 0xFFFFFFFF) / 0x100000000 * sum(scaled)
    for number, weight in enumerate(scaled):
        mark -= weight
        if mark < 0:
            return number
    return len(scaled) - 1


def _option_lines(text: str, options: Sequence[str]) -> str:
    """The lines that explain options where a request has no system message; the same for every row, unlike the rest."""
    lines = (line.strip(" \t-*•") for line in _LINES.findall(text))
    return "\n".join(line for line in lines if line.startswith(tuple(options)))
