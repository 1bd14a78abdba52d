"""Recorded calls: what `yyc3 calls analyze` reads and writes, one JSON object a line."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from schemas.errors import ErrorCode
from schemas.results import SentimentLabel


class Speaker(StrEnum):
    """The speakers of a call."""

    CUSTOMER = "customer"
    AGENT = "agent"


class Language(StrEnum):
    """The languages of the prompts."""

    CHINESE = "zh"
    ENGLISH = "en"


def _can_be_stored(text: str) -> str:
    if "\x00" in text:
        raise ValueError("has a NUL character (\\u0000), which cannot be stored; remove it")
    return text


TurnText = Annotated[str, StringConstraints(min_length=1, max_length=8_000), AfterValidator(_can_be_stored)]


class Turn(BaseModel):
    """One utterance of one speaker. `start_seconds` and `end_seconds` count from the start of the call."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    speaker: Speaker
    text: TurnText
    start_seconds: float | None = Field(default=None, ge=0)
    end_seconds: float | None = Field(default=None, ge=0)


class Call(BaseModel):
    """A call of an input file. Unknown fields are ignored: exports have many."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    call_id: Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_can_be_stored)]
    language: Language | None = None
    started_at: datetime | None = None
    agent: Annotated[str, StringConstraints(max_length=200)] | None = None
    team: Annotated[str, StringConstraints(max_length=200)] | None = None
    turns: tuple[Turn, ...] = Field(min_length=1, max_length=1_000)


class IntentFinding(BaseModel):
    """The intent of a call; `confidence` is the probability of the label, null if the engine gave none."""

    label: str
    confidence: float | None


class SentimentFinding(BaseModel):
    """A sentiment; `score` in [-1, 1] is P(positive) - P(negative)."""

    label: SentimentLabel
    score: float
    confidence: float | None


class TurnFinding(BaseModel):
    """The sentiment of one customer turn; `index` counts all turns of the call from 0."""

    index: int
    sentiment: SentimentFinding


class CallProblem(BaseModel):
    """A job of the call without a result; `turn_index` is null for a job about the whole call."""

    code: ErrorCode
    message: str
    turn_index: int | None


class CallReport(BaseModel):
    """One line of output: everything that was found in one call."""

    call_id: str
    intents: list[IntentFinding]
    sentiment: SentimentFinding | None
    turns: list[TurnFinding]
    models: dict[str, str]
    templates: dict[str, str]
    simulated: bool
    errors: list[CallProblem]
