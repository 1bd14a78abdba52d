"""One module a job kind: build the engine request, read the answer. Pure; a new kind is one new module and one line here."""

from pipeline.kinds import chat, code, intent, sentiment, vision
from pipeline.kinds.requests import Answer, Ask, Constraint, Shape, Target
from pipeline.models import LabelForm
from schemas.jobs import ChatJob, CodeJob, IntentJob, Job, SentimentJob, VisionJob
from schemas.results import Result


def label_words(job: Job) -> tuple[str, ...]:
    """The words a classification is told apart by; empty for kinds that write freely."""
    match job:
        case IntentJob():
            return tuple(option.word for option in intent.options(job))
        case SentimentJob():
            return tuple(option.word for option in sentiment.options(job))
        case ChatJob() | CodeJob() | VisionJob():
            return ()


def build(job: Job, target: Target) -> Ask:
    """The engine request of a job."""
    match job:
        case IntentJob():
            return intent.build(job, target)
        case SentimentJob():
            return sentiment.build(job, target)
        case ChatJob():
            return chat.build(job, target)
        case CodeJob():
            return code.build(job, target)
        case VisionJob():
            return vision.build(job, target)


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
        case CodeJob():
            return code.read(job, answer)
        case VisionJob():
            return vision.read(job, answer)


__all__ = ["Answer", "Ask", "Constraint", "LabelForm", "Shape", "Target", "build", "label_words", "read"]
