"""Guesses which option a text means, by counting words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

from simulator.lexicon import BY_NAME, concept_called, concept_mentioned

_WORD = re.compile(r"[a-z0-9']+|[^\x00-\x7f]+")
_OPTION_LINE = re.compile(r"^[ \t]*(?:[-*•][ \t]*|\d+[.)][ \t]+)?(.{1,80}?)[ \t]*[:：][ \t]*(.*?)[ \t]*$", re.MULTILINE)
_HEAD = re.compile(r"[—–,，。.;；(（/、]| - ")
_TURN = re.compile(
    r"^[ \t]*(customer|caller|user|client|客户|用户|agent|assistant|坐席|客服)[ \t]*[:：]", re.I | re.MULTILINE
)
_AGENTS = frozenset(("agent", "assistant", "坐席", "客服"))
_AGENT_WEIGHT = 0.25
_SHARPNESS = 1.7
_FALLBACK_SCORE = 1.5
_NOISE = 0.5
_STRONG = 2.5
_OWN_WORD = 0.7
_STOP = frozenset(
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
_ENDINGS = ("", "s", "ed", "d", "ing", "es")

Hit = tuple[str | None, int, float]


class OptionScorer:
    """All that is known about one set of options, in one index.

    The index maps an English word, or the first two characters of a Chinese one, to (whole phrase or None, option, weight).
    A text is scored with one look-up per word, whatever the number of options.
    """

    def __init__(self, options: Sequence[str], descriptions: Sequence[str]) -> None:
        self._size = len(options)
        self._index: dict[str, list[Hit]] = {}
        self._fallback: int | None = None
        concepts = [_concept_of(option, text) for option, text in zip(options, descriptions, strict=True)]
        for wanted in ("information", "neutral", "other"):
            if wanted in concepts:
                self._fallback = concepts.index(wanted)
        for number, name in enumerate(concepts):
            self._add_concept(number, name)
            self._add_own_words(number, f"{options[number]} {descriptions[number]}")

    def probabilities(self, text: str, seed: int) -> list[float]:
        """How likely each option is, adding up to 1; the same text and seed always give the same numbers."""
        scores = self._scores(text)
        if self._fallback is not None and max(scores) < 1.0:
            scores[self._fallback] += _FALLBACK_SCORE
        noise = crc32(text.encode("utf-8", "surrogatepass"), seed & 0xFFFFFFFF)
        weights = []
        for score in scores:
            noise = (noise * 1103515245 + 12345) & 0xFFFFFFFF
            weights.append(math.exp(min(score, 6.0) * _SHARPNESS + _NOISE * noise / 0x100000000))
        total = sum(weights)
        return [weight / total for weight in weights]

    def _scores(self, text: str) -> list[float]:
        scores = [0.0] * self._size
        turns = list(_TURN.finditer(text)) if ":" in text or "：" in text else []
        if not turns:
            self._count(text.lower(), 1.0, scores)
            return scores
        self._count(text[: turns[0].start()].lower(), 1.0, scores)
        ends = [turn.start() for turn in turns[1:]] + [len(text)]
        for turn, end in zip(turns, ends, strict=True):
            weight = _AGENT_WEIGHT if turn.group(1).lower() in _AGENTS else 1.0
            self._count(text[turn.end() : end].lower(), weight, scores)
        return scores

    def _count(self, text: str, weight: float, scores: list[float]) -> None:
        index = self._index
        for word in _WORD.findall(text):
            if word[0] < "\x80":
                hits = index.get(word)
                if hits:
                    _award(hits, text, weight, scores)
                continue
            for place in range(len(word) - 1):
                hits = index.get(word[place : place + 2])
                if hits:
                    _award(hits, word[place:], weight, scores)

    def _add_concept(self, number: int, name: str | None) -> None:
        if name is None:
            return
        concept = BY_NAME[name]
        weights = dict.fromkeys(concept.words, 1.0) | dict.fromkeys(concept.strong, _STRONG)
        for phrase, weight in weights.items():
            self._add(phrase, number, weight)
        if name == "positive":
            # "不满意" contains "满意": what is negative takes back what it seems to praise.
            for phrase in BY_NAME["negative"].strong:
                self._add(phrase, number, -1.5)

    def _add_own_words(self, number: int, text: str) -> None:
        seen: set[str] = set()
        for word in _WORD.findall(text.lower()):
            parts = [word] if word[0] < "\x80" else [word[place : place + 2] for place in range(len(word) - 1)]
            seen.update(part for part in parts if part not in _STOP and len(part) > 1)
        for part in seen:
            if not any(hit[1] == number and hit[0] is None for hit in self._index.get(part, ())):
                self._index.setdefault(part, []).append((None, number, _OWN_WORD))

    def _add(self, phrase: str, number: int, weight: float) -> None:
        if not phrase.isascii():
            key = phrase[:2]
            self._index.setdefault(key, []).append((None if phrase == key else phrase, number, weight))
            return
        words = phrase.split(" ")
        if len(words) > 1:
            self._index.setdefault(words[0], []).append((phrase, number, weight))
            return
        for ending in _ENDINGS:
            hits = self._index.setdefault(phrase + ending, [])
            if not any(hit[0] is None and hit[1] == number for hit in hits):
                hits.append((None, number, weight))


def _award(hits: list[Hit], text: str, weight: float, scores: list[float]) -> None:
    for phrase, option, points in hits:
        if phrase is None or (phrase in text if phrase[0] < "\x80" else text.startswith(phrase)):
            scores[option] += points * weight


def _concept_of(option: str, description: str) -> str | None:
    head = _HEAD.split(description, maxsplit=1)[0]
    return concept_called(option) or concept_called(head) or concept_mentioned(head) or concept_mentioned(description)


@lru_cache(maxsize=256)
def scorer_for(options: tuple[str, ...], instructions: str) -> OptionScorer:
    """The scorer of options whose meaning stands in the instructions, one line each: `A: refund — wants money back`."""
    described = {match.group(1).strip("`\"'“”"): match.group(2) for match in _OPTION_LINE.finditer(instructions)}
    return OptionScorer(options, [described.get(option, described.get(option.strip(), "")) for option in options])
