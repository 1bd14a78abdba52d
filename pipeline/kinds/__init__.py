"""One module a job kind: build the engine request, read the answer. Pure; a new kind is one new module and one line here."""

from pipeline.kinds import chat, intent, sentiment
from pipeline.kinds.asking import Answer, Ask, Shape
from pipeline.kinds.classification import Constraint
from pipeline.models import LabelForm
from schemas.jobs import ChatJob, IntentJob, Job, SentimentJob
from schemas.results import Result


def label_words(job: Job) -> tuple[str, ...]:
    """The words a classification is told apart by; empty for kinds that write freely."""
    match job:
        case IntentJob():
            return tuple(option.word for option in intent.options(job))
        case SentimentJob():
            return tuple(option.word for option in sentiment.options(job))
        case ChatJob():
            return ()


def build(job: Job, form: LabelForm, constraint: Constraint, context_tokens: int) -> Ask:
    """The engine request of a job."""
    match job:
        case IntentJob():
            return intent.build(job, form, constraint, context_tokens)
        case SentimentJob():
            return sentiment.build(job, form, constraint, context_tokens)
        case ChatJob():
            return chat.build(job)


def read(job: Job, ask: Ask, answer: Answer) -> Result:
    """The result in an answer.

    Raises:
        InvalidOutput: the answer is not what was asked for; the try has failed.
    """
    match job:
        case IntentJob():
            return intent.read(ask, answer)
        case SentimentJob():
            return sentiment.read(ask, answer)
        case ChatJob():
            return chat.read(answer)


__all__ = ["Answer", "Ask", "Constraint", "LabelForm", "Shape", "build", "label_words", "read"]
