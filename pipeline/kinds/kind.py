"""What a job kind consists of. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipeline.kinds.requests import Completion, CompletionRequest, EndpointProfile
from schemas.job import Job
from schemas.results import Result

JobT = TypeVar("JobT", bound=Job)
ResultT = TypeVar("ResultT", bound=Result)


@dataclass(frozen=True, slots=True)
class Measures:
    """What is counted and filtered of a result; None where its kind has no such value.

    Attributes:
        label: the chosen label.
        confidence: its probability, 0 to 1.
        score: a number on the scale of the kind, for sentiment -1 to 1.
    """

    label: str | None = None
    confidence: float | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Kind(Generic[JobT, ResultT]):
    """One job kind: its data, how it asks an engine, and how its answer is understood.

    Attributes:
        name: the value of `kind` in jobs and results.
        job, result: the data of both ends.
        build: makes the engine request of a job.
        decode: makes the result of a completion; raises InvalidOutput where it is not one.
        headline: the result in one line or text, for people.
        label_words: the words between which a classification chooses; empty for free text.
        measures: what is counted and filtered of a result.
        text: the answer as text, for kinds that are streamed; None for kinds answered in one piece.
        is_answer: whether a streamed text is the answer that a result was made of; by default it
            is the text of the result.
    """

    name: str
    job: type[JobT]
    result: type[ResultT]
    build: Callable[[JobT, EndpointProfile], CompletionRequest]
    decode: Callable[[JobT, CompletionRequest, Completion], ResultT]
    headline: Callable[[ResultT], str]
    label_words: Callable[[JobT], tuple[str, ...]] = lambda _: ()
    measures: Callable[[ResultT], Measures] = lambda _: Measures()
    text: Callable[[ResultT], str] | None = None
    is_answer: Callable[[str, ResultT], bool] | None = None
