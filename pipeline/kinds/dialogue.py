"""Turns as prompt text: their language, their form, and how much of a long call a model reads. Pure."""

from collections.abc import Sequence
from functools import lru_cache

from schemas.calls import Language, Speaker, Turn

_IS_CJK = frozenset(map(chr, range(0x4E00, 0xA000))).__contains__
_NAMES = {
    Language.CHINESE: {Speaker.CUSTOMER: "客户", Speaker.AGENT: "坐席"},
    Language.ENGLISH: {Speaker.CUSTOMER: "customer", Speaker.AGENT: "agent"},
}
_GAP = {Language.CHINESE: "……（中间略）……", Language.ENGLISH: "... (middle left out) ..."}
# Characters that certainly fit into one token; measured vocabularies need fewer tokens than this allows for.
_CHARACTERS_PER_TOKEN = {Language.CHINESE: 1.0, Language.ENGLISH: 3.0}
_SHARE_OF_CONTEXT = 0.6
_SHARE_FOR_TEXT = 0.9


@lru_cache(maxsize=64)  # a job is examined once for its labels and once for its prompt
def language_of(text: str) -> Language:
    """Return Chinese if a tenth of the first 400 characters are CJK: service calls mix in English product names."""
    sample = text[:400]
    if sample.isascii():
        return Language.ENGLISH if sample else Language.CHINESE
    cjk = sum(map(_IS_CJK, sample))
    return Language.CHINESE if cjk * 10 >= len(sample) else Language.ENGLISH


def format_turns(turns: Sequence[Turn], language: Language) -> str:
    """Return one line a turn, `customer: ...`."""
    names = _NAMES[language]
    return "\n".join(f"{names[turn.speaker]}: {turn.text}" for turn in turns)


def fit_to_context(turns: Sequence[Turn], language: Language, max_model_len: int) -> tuple[str, bool]:
    """Return the dialogue as text, and whether its middle was left out because the model does not read that much.

    The first third and the last two thirds of what fits are kept: a customer says first why they
    call, and how it ends comes last.
    """
    budget = int(max_model_len * _SHARE_OF_CONTEXT * _CHARACTERS_PER_TOKEN[language])
    text = format_turns(turns, language)
    if len(text) <= budget:
        return text, False
    head = text[: budget // 3].rsplit("\n", 1)[0]
    tail = text[-(budget - budget // 3) :].split("\n", 1)[-1]
    return f"{head}\n{_GAP[language]}\n{tail}", True


def fit_text(text: str, language: Language, max_model_len: int) -> tuple[str, bool]:
    """Return one utterance, and whether its middle was left out; a text that may fit is tried whole first."""
    budget = int(max_model_len * _SHARE_FOR_TEXT * _CHARACTERS_PER_TOKEN[language])
    if len(text) <= budget:
        return text, False
    return f"{text[: budget // 3]}{_GAP[language]}{text[-(budget - budget // 3) :]}", True
