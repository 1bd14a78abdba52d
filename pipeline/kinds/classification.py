"""Classification by one token with a distribution, shared by intent and sentiment. Pure.

Each label is known by one token: the first of its own word where those differ between the labels (a
model has no preference among words that it understands, but it has among letters), else a letter. The
request constrains the answer to the labels and asks for one token with its alternatives, so the
confidence is the model's own and costs nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from string import ascii_uppercase
from typing import Any

from pipeline.kinds.dialogue import language_of
from pipeline.kinds.requests import Completion, Constraint, RequestTemplate
from pipeline.models import LabelForm
from schemas.calls import Language
from schemas.errors import InvalidOutput, OnlyReasoning
from schemas.jobs import UtteranceJob

MAX_TOP_LOGPROBS = 20  # vLLM's --max-logprobs unless set otherwise; more is refused with 400
WHOLE_WORD_TOKENS = 48
_KNOWN_TEXTS = 4_096
_CLOSING = {
    Language.CHINESE: "只回答选项本身，不要解释。",
    Language.ENGLISH: "Answer with the option alone, without an explanation.",
}


@dataclass(frozen=True, slots=True)
class Option:
    """A label as the model sees it."""

    label: str
    word: str
    description: str | None = None
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelDecoder:
    """Finds the label of a token: `spoken` pairs each label with the text that the model answers for it, in label order."""

    form: LabelForm
    spoken: tuple[tuple[str, str], ...]
    _known: dict[str, str | None] = field(default_factory=dict, init=False, compare=False, repr=False)

    def label_of(self, text: str) -> str | None:
        """Return the one label whose spoken form begins with this text; None where none or several do.

        The same few tokens are alternatives of every answer, so what was found is kept.
        """
        try:
            return self._known[text]
        except KeyError:
            token = text.strip()
            found = [label for label, spoken in self.spoken if token and spoken.startswith(token)]
            if len(self._known) >= _KNOWN_TEXTS:
                self._known.clear()
            label = self._known[text] = found[0] if len(found) == 1 else None
            return label


@dataclass(frozen=True, slots=True)
class Verdict:
    """The label found, and the distribution if there is one."""

    label: str
    probabilities: dict[str, float] | None

    @property
    def confidence(self) -> float | None:
        """The probability of the label."""
        return None if self.probabilities is None else self.probabilities[self.label]


def spoken_language(job: UtteranceJob) -> Language:
    """Return the job's language, or that of its text."""
    return job.language or language_of(job.text or "".join(turn.text for turn in (job.turns or ())[:10]))


def percent(confidence: float | None) -> str:
    """Return a confidence for people, empty where there is none."""
    return "" if confidence is None else f", confidence {confidence:.0%}"


def words_differ(words: Sequence[str], first_tokens: Sequence[str | None]) -> bool:
    """Whether the first token of each word names its label, whichever beginning of a word the engine picks.

    A constraint to whole words lets the engine begin with any token that starts one of them, so the
    first characters must differ, not only the usual first tokens; and a token must hold a whole
    character.
    """
    if any(
        token is None or not word.startswith(token) or not token
        for word, token in zip(words, first_tokens, strict=True)
    ):
        return False
    return len({word[0].casefold() for word in words}) == len(words)


def choose_form(words: Sequence[str], first_tokens: Sequence[str | None] | None) -> LabelForm:
    """Return the best form for these labels; `first_tokens` is None where the endpoint cannot tokenize.

    Letters are one token in every vocabulary in use, so they need no probe. With more labels than the
    server's limit of alternatives some would lose their probabilities: whole words then.
    """
    if len(words) > MAX_TOP_LOGPROBS:
        return LabelForm.WHOLE_WORD
    if first_tokens is not None and words_differ(words, first_tokens):
        return LabelForm.WORD
    return LabelForm.CODE


def fixed_form(form: LabelForm, words: Sequence[str]) -> LabelForm:
    """Return the form that a model entry fixes, as far as it can hold these labels."""
    return LabelForm.WHOLE_WORD if len(words) > MAX_TOP_LOGPROBS else form


@lru_cache(maxsize=256)
def classification_template(
    instruction: str, language: Language, options: tuple[Option, ...], form: LabelForm, constraint: Constraint
) -> RequestTemplate:
    """Return the request around an utterance: instruction, one line an option, worked examples, closing sentence."""
    tokens = [ascii_uppercase[i] if form is LabelForm.CODE else option.word for i, option in enumerate(options)]
    prompt = "\n".join([instruction, *_option_lines(options, tokens, form), _CLOSING[language]])
    template_hash = sha256(prompt.encode()).hexdigest()[:16]
    # Two sets of labels may ask with the same words and mean other labels by them.
    label_set_hash = sha256("\n".join(option.label for option in options).encode()).hexdigest()[:16]
    return RequestTemplate(
        key=f"{template_hash}:{label_set_hash}:{form}:{constraint}",
        prefix=({"role": "system", "content": prompt},),
        parameters=_parameters(tokens, form, constraint),
        template_hash=template_hash,
        label_set_hash=label_set_hash,
        decoder=LabelDecoder(form, tuple(zip((option.label for option in options), tokens, strict=True))),
    )


def _option_lines(options: Sequence[Option], tokens: Sequence[str], form: LabelForm) -> list[str]:
    lines = []
    for token, option in zip(tokens, options, strict=True):
        meaning = option.word if form is LabelForm.CODE else ""
        if option.description:
            meaning = f"{meaning} — {option.description}" if meaning else option.description
        lines.append(f"- {token}: {meaning}" if meaning else f"- {token}")
    for token, option in zip(tokens, options, strict=True):
        lines.extend(f"「{example}」→ {token}" for example in option.examples)
    return lines


def _parameters(tokens: Sequence[str], form: LabelForm, constraint: Constraint) -> dict[str, Any]:
    if constraint is Constraint.STRUCTURED_OUTPUTS:
        constrained: dict[str, Any] = {"structured_outputs": {"choice": list(tokens)}}
        top = len(tokens) + 4  # ranked after the constraint: only beginnings of the labels are left
    else:
        constrained = {"guided_choice": list(tokens)}
        top = 2 * len(tokens) + 2  # ranked before it, so a few more than the labels are asked for
    if form is LabelForm.WHOLE_WORD:
        return {"temperature": 0.0, **constrained, "max_tokens": WHOLE_WORD_TOKENS}
    top = min(MAX_TOP_LOGPROBS, top)
    return {"temperature": 0.0, **constrained, "max_tokens": 1, "logprobs": True, "top_logprobs": top}


def _distribution(tokens: Sequence[tuple[str, float]], decoder: LabelDecoder) -> dict[str, float] | None:
    """Return probabilities of the labels, summing to 1; a label that is not among the alternatives has 0."""
    mass: dict[str, float] = {label: 0.0 for label, _ in decoder.spoken}
    for text, logprob in dict(tokens).items():
        label = decoder.label_of(text)
        if label is not None and math.isfinite(logprob):
            mass[label] += math.exp(logprob)
    total = sum(mass.values())
    return {label: value / total for label, value in mass.items()} if total > 0 else None


def decode_verdict(completion: Completion, decoder: LabelDecoder) -> Verdict:
    """Return the label that was answered.

    Raises:
        OnlyReasoning: the one token went into reasoning.
        InvalidOutput: the answer is empty, or not a label of the set: the constraint was dropped somewhere.
    """
    text = completion.text.strip()
    if text.startswith("<think") or (not text and completion.reasoning):
        raise OnlyReasoning(
            "the model answered with reasoning instead of a label: switch it off with chat_template_kwargs in models.toml"
        )
    if not text:
        raise InvalidOutput("the engine answered with an empty text")
    if decoder.form is LabelForm.WHOLE_WORD:
        whole: Mapping[str, str] = {spoken: label for label, spoken in decoder.spoken}
        return Verdict(_require_label(whole.get(text)), None)
    label = _require_label(decoder.label_of(text))
    probabilities = _distribution(completion.first_token, decoder)
    if probabilities is not None and probabilities[label] == 0.0:
        probabilities = None  # the engine ranked other tokens only: nothing is known of the labels
    return Verdict(label, probabilities)


def _require_label(label: str | None) -> str:
    if label is None:
        raise InvalidOutput("the engine answered outside the labels; does the endpoint honour structured outputs?")
    return label
