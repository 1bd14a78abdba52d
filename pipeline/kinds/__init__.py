"""Job kinds, one module each: build the engine request, decode the answer. Pure.

registry        the kinds; a new one is one module and one line there
kind            what a kind consists of
requests        engine requests and completions as data
intent, sentiment, chat, code, vision, completion
                the kinds
intent_labels   the intents of a call centre, used unless the caller brings labels
classification  one token with a distribution, shared by intent and sentiment
free_text       what the kinds that answer in free text share
dialogue        turns as prompt text
cache_key       names a question, so that its answer can be found again
"""

from pipeline.kinds.kind import Kind, Measures
from pipeline.kinds.registry import build, decode, headline, is_answer, label_words, measures, register, text_of
from pipeline.kinds.requests import Completion, CompletionRequest, Constraint, EndpointProfile, RequestTemplate
from pipeline.models import LabelForm

__all__ = [
    "Completion",
    "CompletionRequest",
    "Constraint",
    "EndpointProfile",
    "Kind",
    "LabelForm",
    "Measures",
    "RequestTemplate",
    "build",
    "decode",
    "headline",
    "is_answer",
    "label_words",
    "measures",
    "register",
    "text_of",
]
