"""Guesses which option a text means, by counting words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from math import exp
from operator import add
from random import Random
from zlib import crc32

from simulator.lexicon import BY_NAME, concept_called, concept_mentioned

_WORD = re.compile(r"[a-z0-9']+|[^\x00-\x7f]+")
_OPTION_LINE = re.compile(r"^[ \t]*(?:[-*•][ \t]*|\d+[.)][ \t]+)?(.{1,80}?)[ \t]*[:：][ \t]*(.*?)[ \t]*$", re.MULTILINE)
_NO_PUNCTUATION = {code: " " for code in range(128) if not (chr(code).isalnum() or chr(code) == "'")}
_HEAD = re.compile(r"[—–,，。.;；(（/、]| - ")
_TURN = re.compile(
    r"^[ \t]*(customer|caller|user|client|客户|用户|agent|assistant|坐席|客服)[ \t]*[:：]", re.I | re.MULTILINE
)
_AGENTS = frozenset(("agent", "assistant", "坐席", "客服"))
_AGENT_WEIGHT = 0.25
_SHARPNESS = 1.7
_FALLBACK_SCORE = 1.5
_ENOUGH = 6.0
_NOISES = 251
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

    The index maps an English word, or the first two characters of a Chinese one, to (whole phrase or None, option,
    weight). A text is scored with one look-up per word, whatever the number of options.
    """

    def __init__(self, options: Sequence[str], descriptions: Sequence[str]) -> None:
        self._index: dict[str, list[Hit]] = {}
        self._fallback: int | None = None
        random = Random(0)
        self._noise = [[exp(random.uniform(0, _NOISE)) for _ in options] for _ in range(_NOISES)]
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
        if self._fallback is not None and max(scores.values(), default=0.0) < 1.0:
            scores[self._fallback] = scores.get(self._fallback, 0.0) + _FALLBACK_SCORE
        # Most options score nothing, so each text starts from noise that is worked out beforehand.
        weights = self._noise[crc32(text.encode("utf-8", "surrogatepass"), seed & 0xFFFFFFFF) % _NOISES].copy()
        for option, score in scores.items():
            weights[option] *= exp(min(score, _ENOUGH) * _SHARPNESS)
        share = 1.0 / sum(weights)
        return [weight * share for weight in weights]

    def _scores(self, text: str) -> dict[int, float]:
        scores: dict[int, float] = {}
        text = text.lower()
        turns = list(_TURN.finditer(text)) if ":" in text or "：" in text else []
        if not turns:
            self._count(text, 1.0, scores)
            return scores
        ends = [turn.start() for turn in turns[1:]] + [len(text)]
        said: tuple[list[str], list[str]] = ([text[: turns[0].start()]], [])
        for turn, end in zip(turns, ends, strict=True):
            said[turn.group(1) in _AGENTS].append(text[turn.end() : end])
        self._count("\n".join(said[0]), 1.0, scores)
        if said[1]:
            self._count("\n".join(said[1]), _AGENT_WEIGHT, scores)
        return scores

    def _count(self, text: str, weight: float, scores: dict[int, float]) -> None:
        """Add the points of every known word that occurs; a word said twice counts once."""
        index = self._index
        if text.isascii():
            found = index.keys() & text.translate(_NO_PUNCTUATION).split()
        else:
            words = _WORD.findall(text)
            found = index.keys() & words
            chinese = " ".join([word for word in words if word[0] > "\x7f"])
            found |= index.keys() & map(add, chinese, chinese[1:])
        # Sorted: sums of floats depend on their order, and a set's changes from run to run.
        for key in sorted(found) if len(found) > 1 else found:
            for phrase, option, points in index[key]:
                if phrase is None or phrase in text:
                    scores[option] = scores.get(option, 0.0) + points * weight

    def _add_concept(self, number: int, name: str | None) -> None:
        if name is None:
            return
        concept = BY_NAME[name]
        weights = dict.fromkeys(concept.words, 1.0) | dict.fromkeys(concept.strong, _STRONG)
        for phrase, weight in weights.items():
            self._add(phrase, number, weight)
        if name == "positive":
            # "不满意" contains "满意": what is negative takes back the praise it seems to hold.
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


def _concept_of(option: str, description: str) -> str | None:
    head = _HEAD.split(description, maxsplit=1)[0]
    return concept_called(option) or concept_called(head) or concept_mentioned(head) or concept_mentioned(description)


@lru_cache(maxsize=256)
def scorer_for(options: tuple[str, ...], instructions: str) -> OptionScorer:
    """The scorer of options whose meaning stands in the instructions, one line each: `A: refund — wants money back`."""
    described = {match.group(1).strip("`\"'“”"): match.group(2) for match in _OPTION_LINE.finditer(instructions)}
    return OptionScorer(options, [described.get(option, described.get(option.strip(), "")) for option in options])
