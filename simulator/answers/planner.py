"""Decides what an answer will be, before the engine writes its first token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from zlib import crc32

import orjson

from simulator.answers.canned_replies import write_reply
from simulator.answers.classifier import get_scorer
from simulator.answers.json_values import JsonGenerator
from simulator.answers.patterns import generate_match
from simulator.requests.constraints import Choice, JsonText
from simulator.requests.prompts import Prompt
from simulator.requests.sampling import SamplingParams
from simulator.requests.tokens import EOS, Tokenizer, tokenize

OptionTokens = tuple[tuple[str, ...], ...]

_LINES_WITH_COLON = re.compile(r"[^\n]*[:：][^\n]*")


@dataclass(slots=True)
class Plan:
    """The answer that the engine will write.

    Attributes:
        tokens: all tokens, with EOS where the model stops by itself.
        text: the text of the tokens, without EOS.
        finish_reason: `stop`, `length` or `abort`.
        stop_reason: the stop string that ended the answer, if one did.
        option_tokens: tokens of each option, when the answer is one of several options.
        probabilities: probability of each option; they add up to 1.
        masked: whether logprobs are those after the constraint. vLLM applies a grammar to the
            logits before it computes logprobs, and `allowed_token_ids` after that.

    """

    tokens: Sequence[str]
    text: str
    finish_reason: str
    stop_reason: str | None = None
    option_tokens: OptionTokens | None = None
    probabilities: Sequence[float] = ()
    masked: bool = True

    def text_up_to(self, count: int) -> str:
        """Return the text of the first `count` tokens."""
        if count >= len(self.tokens):
            return self.text
        return "".join(token for token in self.tokens[:count] if token != EOS)

    def truncate(self, count: int, finish_reason: str) -> Plan:
        """Return the same answer, ended after `count` tokens."""
        tokens = self.tokens[:count]
        text = self.text_up_to(count)
        return Plan(tokens, text, finish_reason, None, self.option_tokens, self.probabilities, self.masked)


class AnswerPlanner:
    """Plans answers; the same prompt, sampling parameters and seed always give the same answer."""

    def __init__(self, seed: int, max_model_len: int, tokenizer: Tokenizer) -> None:
        self._seed = seed
        self._max_model_len = max_model_len
        self._tokenizer = tokenizer

    def plan(self, prompt: Prompt, sampling: SamplingParams, variant: int = 0) -> Plan:
        """Plan the answer to a prompt.

        Args:
            prompt: the prompt.
            sampling: its sampling parameters.
            variant: index of the answer among the `n` answers of the prompt.

        Raises:
            RequestRejected: 400, the simulator does not support the constraint.

        """
        seed = self._seed + 7919 * variant + (sampling.seed or 0)
        constraint = sampling.constraint
        if isinstance(constraint, Choice):
            return self._plan_choice(prompt, sampling, constraint.options, seed)
        if constraint is None and sampling.allowed_token_ids is not None:
            return self._plan_allowed_tokens(prompt, sampling, seed)
        if constraint is None:
            text = write_reply(prompt.question, seed, prompt.images)
        elif isinstance(constraint, JsonText):
            text = self._write_json(prompt, constraint, seed)
        else:
            text = generate_match(constraint.regex, self._random(prompt, seed))
        return self.plan_for_text(text, prompt, sampling, constrained=constraint is not None)

    def plan_for_text(self, text: str, prompt: Prompt, sampling: SamplingParams, constrained: bool = False) -> Plan:
        """Plan the answer with this text, as far as stop strings and limits allow."""
        limit = self._max_output_tokens(prompt, sampling)
        stop_reason = None
        for stop in sampling.stop:
            position = text.find(stop) if stop else -1
            if position >= 0:
                text, stop_reason = text[:position], stop
        tokens = tokenize(text)
        least = limit if sampling.ignore_eos else min(sampling.min_tokens, limit)
        if tokens and not constrained and stop_reason is None and len(tokens) < least:
            tokens = (tokens * (least // len(tokens) + 1))[:least]
        return _limit_plan([*tokens, EOS], limit, stop_reason)

    def _max_output_tokens(self, prompt: Prompt, sampling: SamplingParams) -> int:
        available = self._max_model_len - len(prompt.tokens)
        return available if sampling.max_tokens is None else min(available, sampling.max_tokens)

    def _random(self, prompt: Prompt, seed: int) -> Random:
        return Random(crc32(prompt.question.encode("utf-8", "surrogatepass"), seed & 0xFFFFFFFF))

    def _score_options(self, prompt: Prompt, options: tuple[str, ...], seed: int) -> list[float]:
        instructions = prompt.instructions
        if (not instructions and ":" in prompt.question) or "：" in prompt.question:
            instructions = instructions or _find_option_lines(prompt.question, options)
        return get_scorer(options, instructions).probabilities(prompt.question, seed)

    def _plan_choice(self, prompt: Prompt, sampling: SamplingParams, options: tuple[str, ...], seed: int) -> Plan:
        limit = self._max_output_tokens(prompt, sampling)
        option_tokens = tokenize_options(options)
        probabilities = self._score_options(prompt, options, seed)
        chosen = _choose(probabilities, sampling.temperature, prompt.question, seed)
        tokens = option_tokens[chosen]
        if len(tokens) <= limit:
            return Plan(tokens, options[chosen], "stop", None, option_tokens, probabilities)
        return Plan(tokens[:limit], "".join(tokens[:limit]), "length", None, option_tokens, probabilities)

    def _plan_allowed_tokens(self, prompt: Prompt, sampling: SamplingParams, seed: int) -> Plan:
        limit = self._max_output_tokens(prompt, sampling)
        tokens = self._look_up_tokens(sampling.allowed_token_ids or (), prompt)
        options = tuple(token.strip() or token for token in tokens)
        probabilities = self._score_options(prompt, options, seed)
        chosen = tokens[_choose(probabilities, sampling.temperature, prompt.question, seed)]
        answer = [chosen, EOS] if EOS in tokens else [chosen] * limit
        plan = _limit_plan(answer, limit, None)
        plan.option_tokens = tuple((token,) for token in tokens)
        plan.probabilities, plan.masked = probabilities, False
        return plan

    def _look_up_tokens(self, ids: tuple[int, ...], prompt: Prompt) -> list[str]:
        tokens = [self._tokenizer.id_to_token(token_id) for token_id in ids]
        if None in tokens:
            # After a restart the tokenizer has not assigned these ids yet. Labels occur in the
            # prompt, and single characters are cheap to add.
            self._tokenizer.tokens_to_ids(prompt.tokens)
            self._tokenizer.tokens_to_ids(chr(code) for code in range(32, 127))
            self._tokenizer.tokens_to_ids(token.strip() for token in prompt.tokens if token.strip())
            tokens = [self._tokenizer.id_to_token(token_id) for token_id in ids]
        return [token or "" for token in tokens]

    def _write_json(self, prompt: Prompt, constraint: JsonText, seed: int) -> str:
        if constraint.schema is None:
            sentence = write_reply(prompt.question, seed, prompt.images)
            return orjson.dumps({"answer": sentence, "simulated": True}).decode()

        def choose(options: Sequence[str], name: str) -> str:
            probabilities = self._score_options(prompt, tuple(options), seed)
            return options[_choose(probabilities, 0.0, name, seed)]

        sentence = "".join(tokenize(write_reply(prompt.question, seed, prompt.images))[:12])
        generator = JsonGenerator(constraint.schema, choose, self._random(prompt, seed), sentence)
        return orjson.dumps(generator.generate()).decode()


@lru_cache(maxsize=512)
def tokenize_options(options: tuple[str, ...]) -> OptionTokens:
    """Return the tokens of each option, with EOS."""
    return tuple((*tokenize(option), EOS) for option in options)


def _limit_plan(tokens: Sequence[str], limit: int, stop_reason: str | None) -> Plan:
    kept = tokens[:limit]
    text = "".join(token for token in kept if token != EOS)
    if kept and kept[-1] == EOS:
        return Plan(kept, text, "stop", stop_reason)
    return Plan(kept, text, "length")


def _choose(probabilities: Sequence[float], temperature: float, text: str, seed: int) -> int:
    if temperature == 0:
        return max(range(len(probabilities)), key=probabilities.__getitem__)
    weights = [probability ** (1.0 / temperature) for probability in probabilities]
    fraction = crc32(text.encode("utf-8", "surrogatepass"), (seed ^ 0x5BD1E995) & 0xFFFFFFFF) / 0x100000000
    left = fraction * sum(weights)
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return index
    return len(weights) - 1


def _find_option_lines(text: str, options: Sequence[str]) -> str:
    """Return the lines that explain options, for a request without a system message.

    These lines are the same for every row; the rest of the text is not.
    """
    lines = (line.strip(" \t-*•") for line in _LINES_WITH_COLON.findall(text))
    return "\n".join(line for line in lines if line.startswith(tuple(options)))
