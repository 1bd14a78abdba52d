"""The tree of errors: one code each, sentences without the caller's words."""

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import EngineError, ErrorCode, PipelineError
from schemas.problems import first_problem


def classes(above: type[PipelineError] = PipelineError) -> Iterator[type[PipelineError]]:
    for cls in above.__subclasses__():
        yield cls
        yield from classes(cls)


def test_every_error_has_a_code_that_no_other_error_has() -> None:
    own = [cls.code for cls in classes() if "code" in cls.__dict__]
    assert len(own) > 15
    assert len(set(own)) == len(own)
    without = {cls.__name__ for cls in classes() if not hasattr(cls, "code")}
    assert without == {"ConfigurationError", "SubmissionError", "BrokerError", "StoreError", "EngineError"}


def test_a_code_of_a_newer_version_is_other() -> None:
    assert ErrorCode("discovered_next_year") is ErrorCode.OTHER
    with pytest.raises(ValueError, match="7 is not a valid ErrorCode"):
        ErrorCode(7)  # type: ignore[arg-type]


def test_only_an_absent_or_busy_engine_consumes_no_attempt() -> None:
    free = {cls.__name__ for cls in classes(EngineError) if issubclass(cls, EngineError) and not cls.consumes_attempt}
    assert free == {"EngineUnavailable", "EndpointRefused", "EngineOverloaded"}


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int = Field(ge=1)


class Whole(BaseModel):
    parts: list[Part]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"parts": [{"size": 1}, {"size": 0}]}, "parts.1.size: must be at least 1"),
        ({"parts": [{"size": "SECRET"}]}, "parts.0.size: must be a whole number"),
        (
            {"parts": [{"size": 1, "SECRET words!": 2}]},
            "parts.0.(a field whose name cannot be shown): is not a field here",
        ),
        ({}, "parts: is missing"),
    ],
)
def test_the_first_problem_names_its_field_and_not_its_value(given: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Whole.model_validate(given)
    found = first_problem(refused.value)
    assert found.startswith(problem)
    assert "SECRET" not in found


def test_the_name_of_a_union_member_is_not_part_of_a_field() -> None:
    with pytest.raises(ValidationError) as refused:
        Whole.model_validate({"parts": [{"size": 0}]})
    assert first_problem(refused.value, tags={"parts"}).startswith("0.size: ")
