"""Intent: which of a set of labels says what the customer wants."""

from functools import lru_cache

from pipeline.kinds.classification import Option, read_verdict, shape_for
from pipeline.kinds.dialogue import fitted, language_of
from pipeline.kinds.intent_labels import DEFAULT_OPTIONS, OTHER
from pipeline.kinds.requests import Answer, Ask, Target
from schemas.calls import Language
from schemas.jobs import IntentJob, Label
from schemas.results import IntentResult

_INSTRUCTION = {
    Language.CHINESE: "你是呼叫中心的质检助手。判断客户的主要意图，只回答下列选项中的一个：",
    Language.ENGLISH: "You review calls of a call centre. Name the customer's main intent. Answer with one of these only:",
}
_CLOSING = {
    Language.CHINESE: "只回答选项本身，不要解释。",
    Language.ENGLISH: "Answer with the option alone, without an explanation.",
}


def language(job: IntentJob) -> Language:
    """The job's own, or that of its text."""
    return job.language or language_of(job.text or "".join(turn.text for turn in (job.turns or ())[:10]))


@lru_cache(maxsize=256)
def _own_options(labels: tuple[Label, ...], language: Language) -> tuple[Option, ...]:
    options = tuple(Option(label.name, label.word or label.name, label.description, label.examples) for label in labels)
    other = DEFAULT_OPTIONS[language][-1]
    if any(option.label.casefold() == OTHER or option.word == other.word for option in options):
        return options  # the caller brought one
    return (*options, other)


def options(job: IntentJob) -> tuple[Option, ...]:
    """The caller's labels or the call-centre set; `other` is always among them."""
    spoken = language(job)
    return DEFAULT_OPTIONS[spoken] if job.labels is None else _own_options(job.labels, spoken)


def build(job: IntentJob, target: Target) -> Ask:
    """The request for one utterance or dialogue."""
    spoken = language(job)
    shape = shape_for(_INSTRUCTION[spoken], _CLOSING[spoken], options(job), target.form, target.constraint)
    text, truncated = (
        (job.text, False) if job.text is not None else fitted(job.turns or (), spoken, target.context_tokens)
    )
    return Ask(shape, ({"role": "user", "content": text},), truncated)


def read(ask: Ask, answer: Answer) -> IntentResult:
    """The result of an answer; InvalidOutput where it is none of the labels."""
    verdict = read_verdict(answer, ask.shape.reading)
    return IntentResult(
        label=verdict.label, confidence=verdict.confidence, probabilities=verdict.probabilities, truncated=ask.truncated
    )


__all__ = ["build", "language", "options", "read"]
