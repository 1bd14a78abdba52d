"""Sentiment: how the customer feels, as a label and a score in [-1, 1]."""

from pipeline.kinds.classification import (
    Option,
    classification_template,
    decode_verdict,
    percent,
    spoken_language,
)
from pipeline.kinds.dialogue import fit_text, fit_to_context, format_turns
from pipeline.kinds.kind import Kind, Measures
from pipeline.kinds.requests import Completion, CompletionRequest, EndpointProfile
from schemas.calls import Language
from schemas.jobs import SentimentJob
from schemas.results import SentimentLabel, SentimentResult

# The words differ in their first character, so that one token distinguishes them.
_OPTIONS = {
    Language.CHINESE: (
        Option("positive", "正面", "满意、感谢、高兴", ("太好了，谢谢你帮我解决。",)),
        Option("neutral", "中性", "没有明显情绪，只是说事", ("我想查一下订单。",)),
        Option("negative", "负面", "不满、着急、生气", ("等了一个小时还没人管！",)),
    ),
    Language.ENGLISH: (
        Option("positive", "good", "satisfied, thankful, glad", ("Great, thank you so much.",)),
        Option("neutral", "neutral", "no clear feeling, just stating things", ("I would like to check my order.",)),
        Option("negative", "bad", "unhappy, worried, angry", ("I have waited an hour and nobody helps!",)),
    ),
}
_INSTRUCTION = {
    Language.CHINESE: "你是呼叫中心的质检助手。判断客户的情绪，只回答下列选项中的一个：",
    Language.ENGLISH: "You review calls of a call centre. How does the customer feel? Answer with one of these only:",
}
_CONTEXT = {
    Language.CHINESE: ("之前的对话：", "请判断客户这句话的情绪："),
    Language.ENGLISH: ("Said before:", "How does the customer feel in this turn:"),
}
_SCORE = {SentimentLabel.POSITIVE: 1.0, SentimentLabel.NEUTRAL: 0.0, SentimentLabel.NEGATIVE: -1.0}


def options(job: SentimentJob) -> tuple[Option, ...]:
    """Return the three sentiments in the language of the job."""
    return _OPTIONS[spoken_language(job)]


def build(job: SentimentJob, profile: EndpointProfile) -> CompletionRequest:
    """Return the request of one utterance, with its context if given, or of one dialogue."""
    language = spoken_language(job)
    template = classification_template(
        _INSTRUCTION[language], language, _OPTIONS[language], profile.form, profile.constraint
    )
    if job.text is None:
        text, truncated = fit_to_context(job.turns or (), language, profile.max_model_len)
    else:
        text, truncated = fit_text(job.text, language, profile.max_model_len)
    if job.context:
        before, now = _CONTEXT[language]
        text = f"{before}\n{format_turns(job.context, language)}\n{now}\n{text}"
    return CompletionRequest(template, ({"role": "user", "content": text},), truncated)


def decode(_job: SentimentJob, request: CompletionRequest, completion: Completion) -> SentimentResult:
    """Return label and score; InvalidOutput where the answer is none of the three."""
    verdict = decode_verdict(completion, request.template.decoder)
    label, spread = SentimentLabel(verdict.label), verdict.probabilities
    return SentimentResult(
        label=label,
        score=_SCORE[label] if spread is None else spread["positive"] - spread["negative"],
        confidence=verdict.confidence,
        probabilities=spread,
        truncated=request.truncated,
    )


KIND = Kind(
    "sentiment",
    SentimentJob,
    SentimentResult,
    build,
    decode,
    headline=lambda result: f"{result.label} (score {result.score:+.2f}){percent(result.confidence)}",
    label_words=lambda job: tuple(option.word for option in options(job)),
    measures=lambda result: Measures(label=result.label, confidence=result.confidence, score=result.score),
)
