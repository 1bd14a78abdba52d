"""Sentiment: how the customer feels, as a label and a score in [-1, 1]."""

from pipeline.kinds.classification import Option, read_verdict, shape_for
from pipeline.kinds.dialogue import fitted, language_of, written
from pipeline.kinds.requests import Answer, Ask, Target
from schemas.calls import Language
from schemas.jobs import SentimentJob
from schemas.results import SentimentLabel, SentimentResult

# The words differ in their first character, so that one token tells them apart.
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
_CLOSING = {
    Language.CHINESE: "只回答选项本身，不要解释。",
    Language.ENGLISH: "Answer with the option alone, without an explanation.",
}
_CONTEXT = {
    Language.CHINESE: ("之前的对话：", "请判断客户这句话的情绪："),
    Language.ENGLISH: ("Said before:", "How does the customer feel in this turn:"),
}
_SCORE = {SentimentLabel.POSITIVE: 1.0, SentimentLabel.NEUTRAL: 0.0, SentimentLabel.NEGATIVE: -1.0}


def language(job: SentimentJob) -> Language:
    """The job's own, or that of its text."""
    return job.language or language_of(job.text or "".join(turn.text for turn in (job.turns or ())[:10]))


def options(job: SentimentJob) -> tuple[Option, ...]:
    """Always the same three."""
    return _OPTIONS[language(job)]


def build(job: SentimentJob, target: Target) -> Ask:
    """The request for one utterance, with its context where given, or one dialogue."""
    spoken = language(job)
    shape = shape_for(_INSTRUCTION[spoken], _CLOSING[spoken], _OPTIONS[spoken], target.form, target.constraint)
    truncated = False
    if job.text is None:
        text, truncated = fitted(job.turns or (), spoken, target.context_tokens)
    elif job.context:
        before, now = _CONTEXT[spoken]
        text = f"{before}\n{written(job.context, spoken)}\n{now}\n{job.text}"
    else:
        text = job.text
    return Ask(shape, ({"role": "user", "content": text},), truncated)


def read(ask: Ask, answer: Answer) -> SentimentResult:
    """The result of an answer; InvalidOutput where it is none of the three."""
    verdict = read_verdict(answer, ask.shape.reading)
    label = SentimentLabel(verdict.label)
    spread = verdict.probabilities
    score = _SCORE[label] if spread is None else spread["positive"] - spread["negative"]
    return SentimentResult(
        label=label, score=score, confidence=verdict.confidence, probabilities=spread, truncated=ask.truncated
    )


__all__ = ["build", "language", "options", "read"]
