"""Intent: which of a set of labels says what the customer wants."""

from functools import lru_cache

from pipeline.kinds.classification import (
    Option,
    classification_template,
    decode_verdict,
    percent,
    spoken_language,
)
from pipeline.kinds.dialogue import fit_text, fit_to_context
from pipeline.kinds.intent_labels import DEFAULT_OPTIONS, OTHER
from pipeline.kinds.kind import Kind, Measures
from pipeline.kinds.requests import Completion, CompletionRequest, EndpointProfile
from schemas.calls import Language
from schemas.jobs import IntentJob, Label
from schemas.results import IntentResult

_INSTRUCTION = {
    Language.CHINESE: "你是呼叫中心的质检助手。判断客户的主要意图，只回答下列选项中的一个：",
    Language.ENGLISH: "You review calls of a call centre. Name the customer's main intent. Answer with one of these only:",
}


@lru_cache(maxsize=256)
def _own_options(labels: tuple[Label, ...], language: Language) -> tuple[Option, ...]:
    options = tuple(Option(label.name, label.word or label.name, label.description, label.examples) for label in labels)
    other = DEFAULT_OPTIONS[language][-1]
    if any(option.label.casefold() == OTHER or option.word == other.word for option in options):
        return options  # the caller brought one
    return (*options, other)


def options(job: IntentJob) -> tuple[Option, ...]:
    """Return the caller's labels or those of a call centre; `other` is always among them."""
    language = spoken_language(job)
    return DEFAULT_OPTIONS[language] if job.labels is None else _own_options(job.labels, language)


def build(job: IntentJob, profile: EndpointProfile) -> CompletionRequest:
    """Return the request of one utterance or dialogue."""
    language = spoken_language(job)
    template = classification_template(_INSTRUCTION[language], language, options(job), profile.form, profile.constraint)
    if job.text is not None:
        text, truncated = fit_text(job.text, language, profile.max_model_len)
    else:
        text, truncated = fit_to_context(job.turns or (), language, profile.max_model_len)
    return CompletionRequest(template, ({"role": "user", "content": text},), truncated)


def decode(_job: IntentJob, request: CompletionRequest, completion: Completion) -> IntentResult:
    """Return the chosen label; InvalidOutput where the answer is none of the labels."""
    verdict = decode_verdict(completion, request.template.decoder)
    return IntentResult(
        label=verdict.label,
        confidence=verdict.confidence,
        probabilities=verdict.probabilities,
        truncated=request.truncated,
    )


KIND = Kind(
    "intent",
    IntentJob,
    IntentResult,
    build,
    decode,
    headline=lambda result: result.label + percent(result.confidence),
    label_words=lambda job: tuple(option.word for option in options(job)),
    measures=lambda result: Measures(label=result.label, confidence=result.confidence),
)
