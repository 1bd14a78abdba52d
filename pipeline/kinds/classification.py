"""Classification by one token with a distribution, shared by intent and sentiment.

Each label is known by one token: the first of its own word where those differ between the labels (a model has no favourite
among words it understands, but it has among letters), else a letter. The request constrains the answer to the labels and
asks for one token with its alternatives, so confidence is the model's own and costs nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from string import ascii_uppercase
from typing import Any

from pipeline.kinds.requests import Answer, Constraint, Shape
from pipeline.models import LabelForm
from schemas.errors import InvalidOutput

MAX_TOP_LOGPROBS = 20  # vLLM's --max-logprobs unless set otherwise; more is refused with 400
WHOLE_WORD_TOKENS = 48
_KNOWN_TEXTS = 4_096


@dataclass(frozen=True, slots=True)
class Option:
    """A label as the model sees it."""

    label: str
    word: str
    description: str | None = None
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """How to understand the answer: the text the model may say for each label, in label order."""

    form: LabelForm
    spoken: tuple[tuple[str, str], ...]
    _known: dict[str, str | None] = field(default_factory=dict, init=False, compare=False, repr=False)

    def label_of(self, text: str) -> str | None:
        """The one label whose spoken form begins with this text; None where none or several do.

        The same few tokens are alternatives of every answer, so what was found is kept.
        """
        try:
            return self._known[text]
        except KeyError:
            said = text.strip()
            found = [label for label, spoken in self.spoken if said and spoken.startswith(said)]
            if len(self._known) >= _KNOWN_TEXTS:
                self._known.clear()
            label = self._known[text] = found[0] if len(found) == 1 else None
            return label


@dataclass(frozen=True, slots=True)
class Verdict:
    """The label found, and the distribution where there is one."""

    label: str
    probabilities: dict[str, float] | None

    @property
    def confidence(self) -> float | None:
        """The probability of the label."""
        return None if self.probabilities is None else self.probabilities[self.label]


def words_tell_apart(words: Sequence[str], first_tokens: Sequence[str | None]) -> bool:
    """Whether the first token of each word names its label, whichever beginning of a word the engine picks.

    A constraint to whole words lets the engine begin with any token that starts one of them, so not only the usual first
    tokens but the first characters must differ; and a token must hold a whole character.
    """
    if any(
        token is None or not word.startswith(token) or not token
        for word, token in zip(words, first_tokens, strict=True)
    ):
        return False
    return len({word[0].casefold() for word in words}) == len(words)


def choose_form(words: Sequence[str], first_tokens: Sequence[str | None] | None) -> LabelForm:
    """The best form for these labels; `first_tokens` is None where the endpoint cannot tokenize.

    Letters are one token in every vocabulary in use, so they need no probe. More labels than the server's limit of
    alternatives would lose their probabilities: whole words then.
    """
    if len(words) > MAX_TOP_LOGPROBS:
        return LabelForm.WHOLE_WORD
    if first_tokens is not None and words_tell_apart(words, first_tokens):
        return LabelForm.WORD
    return LabelForm.CODE


def fixed_form(form: LabelForm, words: Sequence[str]) -> LabelForm:
    """The form a model entry asks for, as far as it can hold these labels."""
    return LabelForm.WHOLE_WORD if len(words) > MAX_TOP_LOGPROBS else form


@lru_cache(maxsize=256)
def shape_for(
    instruction: str, closing: str, options: tuple[Option, ...], form: LabelForm, constraint: Constraint
) -> Shape:
    """The request around an utterance: instruction, options one a line, worked examples, closing sentence."""
    tokens = [ascii_uppercase[i] if form is LabelForm.CODE else option.word for i, option in enumerate(options)]
    lines = [instruction]
    for token, option in zip(tokens, options, strict=True):
        meaning = option.word if form is LabelForm.CODE else ""
        if option.description:
            meaning = f"{meaning} — {option.description}" if meaning else option.description
        lines.append(f"- {token}: {meaning}" if meaning else f"- {token}")
    for token, option in zip(tokens, options, strict=True):
        lines.extend(f"「{example}」→ {token}" for example in option.examples)
    lines.append(closing)
    prompt = "\n".join(lines)
    parameters: dict[str, Any] = {"temperature": 0.0}
    if constraint is Constraint.STRUCTURED_OUTPUTS:
        parameters["structured_outputs"] = {"choice": tokens}
        top = len(options) + 4  # ranked after the constraint: only the labels' own beginnings are left
    else:
        parameters["guided_choice"] = tokens
        top = 2 * len(options) + 2  # ranked before it, so a few more than labels are asked for
    if form is LabelForm.WHOLE_WORD:
        parameters["max_tokens"] = WHOLE_WORD_TOKENS
    else:
        parameters |= {"max_tokens": 1, "logprobs": True, "top_logprobs": min(MAX_TOP_LOGPROBS, top)}
    template_hash = sha256(prompt.encode()).hexdigest()[:16]
    # Two sets of labels may ask with the same words and mean other labels by them.
    meant = sha256("\n".join(option.label for option in options).encode()).hexdigest()[:16]
    return Shape(
        key=f"{template_hash}:{meant}:{form}:{constraint}",
        prefix=({"role": "system", "content": prompt},),
        parameters=parameters,
        template_hash=template_hash,
        reading=Reading(form, tuple(zip((option.label for option in options), tokens, strict=True))),
    )


def _distribution(tokens: Sequence[tuple[str, float]], reading: Reading) -> dict[str, float] | None:
    """Probabilities of the labels, summing to 1; a label that is not among the alternatives has 0."""
    mass: dict[str, float] = {label: 0.0 for label, _ in reading.spoken}
    for text, logprob in dict(tokens).items():
        label = reading.label_of(text)
        if label is not None and math.isfinite(logprob):
            mass[label] += math.exp(logprob)
    total = sum(mass.values())
    return {label: value / total for label, value in mass.items()} if total > 0 else None


def read_verdict(answer: Answer, reading: Reading) -> Verdict:
    """The label that was answered.

    Raises:
        InvalidOutput: empty, or no label of the set: the constraint was dropped somewhere.
    """
    text = answer.text.strip()
    if not text:
        raise InvalidOutput("the engine answered with nothing")
    if reading.form is LabelForm.WHOLE_WORD:
        whole: Mapping[str, str] = {spoken: label for label, spoken in reading.spoken}
        if text not in whole:
            raise InvalidOutput("the engine answered outside the labels; does the endpoint honour structured outputs?")
        return Verdict(whole[text], None)
    label = reading.label_of(text)
    if label is None:
        raise InvalidOutput("the engine answered outside the labels; does the endpoint honour structured outputs?")
    probabilities = _distribution(answer.first_token, reading)
    if probabilities is not None and probabilities[label] == 0.0:
        probabilities = None  # the engine ranked other tokens only: nothing is known of the labels
    return Verdict(label, probabilities)


__all__ = [
    "MAX_TOP_LOGPROBS",
    "Option",
    "Reading",
    "Verdict",
    "choose_form",
    "fixed_form",
    "read_verdict",
    "shape_for",
    "words_tell_apart",
]
