"""A kind from outside the package goes all the way: parsed, routed, asked, decoded, stored, published."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import orjson
import pytest

import schemas.jobs
import schemas.results
from pipeline import kinds
from pipeline.kinds import Completion, CompletionRequest, Constraint, EndpointProfile, Kind, LabelForm, Measures
from pipeline.kinds.free_text import free_text_template, require_text
from pipeline.kinds.registry import KINDS
from pipeline.models import load_models
from pipeline.policies.routing import route
from schemas.errors import InvalidJob, InvalidOutput
from schemas.ids import JobId
from schemas.job import Job
from schemas.jobs import Sampling, Text, canonical, parse_job
from schemas.published import json_schema
from schemas.published.typescript import typescript
from schemas.results import JobState, Outcome, Result, parse_result

PROFILE = EndpointProfile(LabelForm.WORD, Constraint.STRUCTURED_OUTPUTS, 8_192)
INSTRUCTION = "Summarise the call in one sentence."


class SummaryJob(Job):
    """Summarise a call.

    Attributes:
        text: the call.
    """

    kind: Literal["summary"] = "summary"
    text: Text


class SummaryResult(Result):
    """The call in one sentence."""

    kind: Literal["summary"] = "summary"
    sentence: str


def build(job: SummaryJob, profile: EndpointProfile) -> CompletionRequest:
    template = free_text_template("summary", Sampling(), profile, max_tokens=64, words=INSTRUCTION)
    return CompletionRequest(template, ({"role": "user", "content": f"{INSTRUCTION}\n{job.text}"},))


def decode(_job: SummaryJob, _request: CompletionRequest, completion: Completion) -> SummaryResult:
    return SummaryResult(sentence=require_text(completion).strip())


SUMMARY = Kind(
    "summary",
    SummaryJob,
    SummaryResult,
    build,
    decode,
    headline=lambda result: result.sentence,
    measures=lambda result: Measures(label="long" if len(result.sentence) > 20 else "short"),
    text=lambda result: result.sentence,
)
GIVEN: dict[str, Any] = {"kind": "summary", "text": "你好", "tags": {"call": "7"}}


def unregister(kind: Kind[Any, Any]) -> None:
    """Remove a kind; the product never does."""
    del KINDS[kind.name]
    for module in (schemas.jobs, schemas.results):
        del module._MODELS[kind.name]
        module._adapter.cache_clear()


@pytest.fixture
def summary() -> Iterator[None]:
    kinds.register(SUMMARY)
    yield
    unregister(SUMMARY)


@pytest.fixture
def result() -> SummaryResult:
    return SummaryResult(sentence="A customer asks for money back.")


@pytest.mark.usefixtures("summary")
def test_a_job_of_a_registered_kind_is_parsed_and_canonical() -> None:
    job = parse_job(GIVEN)
    assert isinstance(job, SummaryJob)
    assert orjson.loads(canonical(job)) == GIVEN
    assert parse_job(canonical(job)) == job
    with pytest.raises(InvalidJob, match="job refused: text: "):
        parse_job(GIVEN | {"text": ""})


@pytest.mark.usefixtures("summary")
def test_a_job_of_a_registered_kind_goes_to_a_model_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text("[models.a]\nkinds=['chat']\nport=80\n[models.b]\nkinds=['summary']\nport=81\n")
    assert route(parse_job(GIVEN), load_models(file)).name == "b"


@pytest.mark.usefixtures("summary")
def test_a_registered_kind_is_built_decoded_and_measured(result: SummaryResult) -> None:
    job = parse_job(GIVEN)
    request = kinds.build(job, PROFILE)
    assert request.messages[0]["content"] == f"{INSTRUCTION}\n你好"
    assert kinds.label_words(job) == ()
    assert kinds.decode(job, request, Completion(f" {result.sentence}\n", "stop")) == result
    with pytest.raises(InvalidOutput):
        kinds.decode(job, request, Completion(" ", "stop"))
    assert kinds.headline(result) == kinds.text_of(result) == result.sentence
    assert kinds.measures(result) == Measures(label="long")
    assert kinds.is_answer(result.sentence, result)
    assert not kinds.is_answer("another", result)


@pytest.mark.usefixtures("summary")
def test_an_outcome_of_a_registered_kind_survives_json(result: SummaryResult) -> None:
    outcome = Outcome(job_id=JobId(1024), kind="summary", state=JobState.SUCCEEDED, result=result)
    assert Outcome.model_validate_json(outcome.model_dump_json()) == outcome
    assert outcome.model_dump(mode="json")["result"] == {
        "kind": "summary",
        "truncated": False,
        "sentence": result.sentence,
    }
    assert parse_result(result.model_dump_json().encode()) == result


@pytest.mark.usefixtures("summary")
def test_a_registered_kind_is_published() -> None:
    definitions = json_schema()["$defs"]
    assert {"$ref": "#/$defs/SummaryJob"} in definitions["Job"]["oneOf"]
    assert {"$ref": "#/$defs/SummaryResult"} in definitions["Result"]["oneOf"]
    assert {"$ref": "#/$defs/SummaryArguments"} in definitions["SubmitArguments"]["oneOf"]
    assert definitions["SummaryJob"]["properties"]["text"]["description"] == "the call."
    assert "export type SummaryResult =" in typescript(definitions)


def test_without_its_registration_the_kind_is_refused() -> None:
    with pytest.raises(InvalidJob, match="job refused: kind: must be one of 'intent', "):
        parse_job(GIVEN)
    assert "SummaryJob" not in json_schema()["$defs"]
