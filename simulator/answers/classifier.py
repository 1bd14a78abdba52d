"""Probabilities of options for a text, from the words that occur in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from math import exp
from operator import add
from random import Random
from zlib import crc32

from simulator.answers.lexicon import CONCEPTS_BY_NAME, find_concept_by_label, find_concept_in_text

_WORD = re.compile(r"[a-z0-9']+|[^\x00-\x7f]+")
_OPTION_LINE = re.compile(r"^[ \t]*(?:[-*•][ \t]*|\d+[.)][ \t]+)?(.{1,80}?)[ \t]*[:：][ \t]*(.*?)[ \t]*$", re.MULTILINE)
_PUNCTUATION_TO_SPACE = {code: " " for code in range(128) if not (chr(code).isalnum() or chr(code) == "'")}
_HEAD_END = re.compile(r"[—–,，。.;；(（/、]| - ")
_TURN = re.compile(
    r"^[ \t]*(customer|caller|user|client|客户|用户|agent|assistant|坐席|客服)[ \t]*[:：]", re.I | re.MULTILINE
)
_AGENTS = frozenset(("agent", "assistant", "坐席", "客服"))
_AGENT_WEIGHT = 0.25
_SHARPNESS = 1.7
_FALLBACK_SCORE = 1.5
_MAX_SCORE = 6.0
_NOISE_ROWS = 251
_MAX_NOISE = 0.5
_STRONG_WEIGHT = 2.5
_OWN_WORD_WEIGHT = 0.7
_STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "for",
        "from",
        "has",
        "have",
        "i",
        "in",
        "is",
        "it",
        "its",
        "my",
        "of",
        "on",
        "or",
        "our",
        "the",
        "their",
        "they",
        "this",
        "to",
        "wants",
        "want",
        "with",
        "you",
        "your",
        "customer",
        "caller",
        "user",
        "about",
        "asks",
        "ask",
        "asking",
        "客户",
        "用户",
        "顾客",
        "要求",
        "询问",
        "希望",
        "想要",
        "关于",
        "的问",
        "问题",
        "相关",
    ]
)
_SUFFIXES = ("", "s", "ed", "d", "ing", "es")

Hit = tuple[str | None, int, float]


class OptionScorer:
    """Scores a text for one set of options.

    One index maps an English word, or the first two characters of a Chinese word, to (whole phrase
    or None, option, weight). Scoring takes one look-up per word, for any option of options.
    """

    def __init__(self, options: Sequence[str], descriptions: Sequence[str]) -> None:
        self._index: dict[str, list[Hit]] = {}
        self._fallback: int | None = None
        random = Random(0)
        self._noise_rows = [[exp(random.uniform(0, _MAX_NOISE)) for _ in options] for _ in range(_NOISE_ROWS)]
        concepts = [_find_concept(option, text) for option, text in zip(options, descriptions, strict=True)]
        for wanted in ("information", "neutral", "other"):
            if wanted in concepts:
                self._fallback = concepts.index(wanted)
        for option, name in enumerate(concepts):
            self._add_concept(option, name)
            self._add_own_words(option, f"{options[option]} {descriptions[option]}")

    def probabilities(self, text: str, seed: int) -> list[float]:
        """Return the probability of each option; they add up to 1.

        The same text and seed always give the same numbers.
        """
        scores = self._score(text)
        if self._fallback is not None and max(scores.values(), default=0.0) < 1.0:
            scores[self._fallback] = scores.get(self._fallback, 0.0) + _FALLBACK_SCORE
        # Most options have no score, so each text starts from noise that was computed in advance.
        weights = self._noise_rows[crc32(text.encode("utf-8", "surrogatepass"), seed & 0xFFFFFFFF) % _NOISE_ROWS].copy()
        for option, score in scores.items():
            weights[option] *= exp(min(score, _MAX_SCORE) * _SHARPNESS)
        share = 1.0 / sum(weights)
        return [weight * share for weight in weights]

    def _score(self, text: str) -> dict[int, float]:
        scores: dict[int, float] = {}
        text = text.lower()
        turns = list(_TURN.finditer(text)) if ":" in text or "：" in text else []
        if not turns:
            self._add_points(text, 1.0, scores)
            return scores
        ends = [turn.start() for turn in turns[1:]] + [len(text)]
        customer_texts: list[str] = [text[: turns[0].start()]]
        agent_texts: list[str] = []
        for turn, end in zip(turns, ends, strict=True):
            texts = agent_texts if turn.group(1) in _AGENTS else customer_texts
            texts.append(text[turn.end() : end])
        self._add_points("\n".join(customer_texts), 1.0, scores)
        if agent_texts:
            self._add_points("\n".join(agent_texts), _AGENT_WEIGHT, scores)
        return scores

    def _add_points(self, text: str, weight: float, scores: dict[int, float]) -> None:
        """Add the points of each known word that occurs; a word that occurs twice counts once."""
        index = self._index
        if text.isascii():
            found = index.keys() & text.translate(_PUNCTUATION_TO_SPACE).split()
        else:
            words = _WORD.findall(text)
            found = index.keys() & words
            chinese = " ".join([word for word in words if word[0] > "\x7f"])
            found |= index.keys() & map(add, chinese, chinese[1:])
        # Sorted: a sum of floats depends on the order, and the order of a set differs between runs.
        for key in sorted(found) if len(found) > 1 else found:
            for phrase, option, points in index[key]:
                if phrase is None or phrase in text:
                    scores[option] = scores.get(option, 0.0) + points * weight

    def _add_concept(self, option: int, name: str | None) -> None:
        if name is None:
            return
        concept = CONCEPTS_BY_NAME[name]
        weights = dict.fromkeys(concept.words, 1.0) | dict.fromkeys(concept.strong_words, _STRONG_WEIGHT)
        for phrase, weight in weights.items():
            self._add_phrase(phrase, option, weight)
        if name == "positive":
            # "不满意" contains "满意": a negative phrase removes the points of the praise inside it.
            for phrase in CONCEPTS_BY_NAME["negative"].strong_words:
                self._add_phrase(phrase, option, -1.5)

    def _add_own_words(self, option: int, text: str) -> None:
        seen: set[str] = set()
        for word in _WORD.findall(text.lower()):
            parts = [word] if word[0] < "\x80" else [word[start : start + 2] for start in range(len(word) - 1)]
            seen.update(part for part in parts if part not in _STOP_WORDS and len(part) > 1)
        for part in seen:
            if not any(hit[1] == option and hit[0] is None for hit in self._index.get(part, ())):
                self._index.setdefault(part, []).append((None, option, _OWN_WORD_WEIGHT))

    def _add_phrase(self, phrase: str, option: int, weight: float) -> None:
        if not phrase.isascii():
            key = phrase[:2]
            self._index.setdefault(key, []).append((None if phrase == key else phrase, option, weight))
            return
        words = phrase.split(" ")
        if len(words) > 1:
            self._index.setdefault(words[0], []).append((phrase, option, weight))
            return
        for suffix in _SUFFIXES:
            hits = self._index.setdefault(phrase + suffix, [])
            if not any(hit[0] is None and hit[1] == option for hit in hits):
                hits.append((None, option, weight))


def _find_concept(option: str, description: str) -> str | None:
    head = _HEAD_END.split(description, maxsplit=1)[0]
    return (
        find_concept_by_label(option)
        or find_concept_by_label(head)
        or find_concept_in_text(head)
        or find_concept_in_text(description)
    )


@lru_cache(maxsize=256)
def get_scorer(options: tuple[str, ...], instructions: str) -> OptionScorer:
    """Return the scorer of options that the instructions explain.

    Each option has a line of the form `A: refund — wants money back`. Scorers are cached.
    """
    described = {match.group(1).strip("`\"'“”"): match.group(2) for match in _OPTION_LINE.finditer(instructions)}
    return OptionScorer(options, [described.get(option, described.get(option.strip(), "")) for option in options])
