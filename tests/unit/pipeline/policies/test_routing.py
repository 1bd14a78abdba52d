"""Which model a job goes to."""

import pytest

from pipeline.models import load_models
from pipeline.policies.routing import route
from schemas.errors import InvalidJob, UnknownModel
from schemas.jobs import parse_job


def test_a_job_goes_to_the_first_model_that_supports_its_kind() -> None:
    models = load_models()
    job = parse_job({"kind": "chat", "messages": [{"role": "user", "content": "hi"}]})
    assert route(job, models).name == "chatglm3-6b"
    assert route(job.model_copy(update={"model": "codegeex4-all-9b"}), models).name == "codegeex4-all-9b"
    with pytest.raises(UnknownModel, match="does not support chat; its kinds are vision"):
        route(job.model_copy(update={"model": "cogagent"}), models)


def test_a_vision_job_goes_to_a_model_that_reads_that_many_images() -> None:
    job = parse_job({"kind": "vision", "question": "?", "images": ["data:a"] * 3})
    with pytest.raises(InvalidJob, match="images: 3 are given, cogagent reads at most 1 a job"):
        route(job, load_models())
    one = parse_job({"kind": "vision", "question": "?", "images": ["data:a"]})
    assert route(one, load_models()).name == "cogagent"
