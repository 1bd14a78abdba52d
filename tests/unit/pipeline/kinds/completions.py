"""Requests and completions for tests of kinds."""

import math
from collections.abc import Mapping

from pipeline import kinds
from pipeline.kinds import Completion, CompletionRequest, Constraint, EndpointProfile, LabelForm
from schemas.job import Job
from schemas.jobs import parse_job

STRUCTURED = Constraint.STRUCTURED_OUTPUTS


def build(
    job: Mapping[str, object], form: LabelForm = LabelForm.WORD, constraint: Constraint = STRUCTURED
) -> tuple[Job, CompletionRequest]:
    """Return a job and its engine request."""
    parsed = parse_job(dict(job))
    return parsed, kinds.build(parsed, EndpointProfile(form, constraint, 8_192))


def completion(text: str, *alternatives: tuple[str, float], finish: str = "length") -> Completion:
    """Return a completion with the alternatives of its first token and their probabilities."""
    return Completion(text, finish, tuple((token, math.log(share)) for token, share in alternatives))
