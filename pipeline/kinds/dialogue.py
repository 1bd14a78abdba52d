"""Turns as prompt text: which language, how written, how much of a long call is read."""

from collections.abc import Sequence
from functools import lru_cache

from schemas.calls import Language, Speaker, Turn

_IS_CJK = frozenset(map(chr, range(0x4E00, 0xA000))).__contains__
_NAMES = {
    Language.CHINESE: {Speaker.CUSTOMER: "客户", Speaker.AGENT: "坐席"},
    Language.ENGLISH: {Speaker.CUSTOMER: "customer", Speaker.AGENT: "agent"},
}
_GAP = {Language.CHINESE: "……（中间略）……", Language.ENGLISH: "... (middle left out) ..."}
# Characters that certainly fit a token each; measured vocabularies need fewer tokens than this allows for.
_CHARACTERS_PER_TOKEN = {Language.CHINESE: 1.0, Language.ENGLISH: 3.0}
_SHARE_OF_CONTEXT = 0.6


@lru_cache(maxsize=64)  # a job is looked at once for its labels and once for its prompt
def language_of(text: str) -> Language:
    """Chinese if a tenth of the first 400 characters are CJK: service calls mix in English product names."""
    sample = text[:400]
    if sample.isascii():
        return Language.ENGLISH if sample else Language.CHINESE
    cjk = sum(map(_IS_CJK, sample))
    return Language.CHINESE if cjk * 10 >= len(sample) else Language.ENGLISH


def written(turns: Sequence[Turn], language: Language) -> str:
    """One line a turn, `customer: ...`."""
    names = _NAMES[language]
    return "\n".join(f"{names[turn.speaker]}: {turn.text}" for turn in turns)


def fitted(turns: Sequence[Turn], language: Language, context_tokens: int) -> tuple[str, bool]:
    """The dialogue as text, and whether its middle was left out because it was longer than the model reads.

    The first third and the last two thirds of what fits are kept: why a customer calls is said first, how it ends last.
    """
    budget = int(context_tokens * _SHARE_OF_CONTEXT * _CHARACTERS_PER_TOKEN[language])
    text = written(turns, language)
    if len(text) <= budget:
        return text, False
    head = text[: budget // 3].rsplit("\n", 1)[0]
    tail = text[-(budget - budget // 3) :].split("\n", 1)[-1]
    return f"{head}\n{_GAP[language]}\n{tail}", True


__all__ = ["fitted", "language_of", "written"]
