"""Identifiers, with types of their own, so that a job is never mistaken for a batch."""

from typing import Any, NewType

from schemas.errors import BatchNotFound, InvalidJob, JobNotFound

JobId = NewType("JobId", int)
"""A row of `jobs`; a chunk is named by its first job."""

BatchId = NewType("BatchId", int)
"""Jobs that a caller submitted together."""

_LARGEST = 2**63 - 1


def job_id(given: Any) -> JobId:
    """Return the id of a job: a number, or its digits as text, as JSON of other languages has them.

    Raises:
        InvalidJob: it is neither.
        JobNotFound: no job has such a number.
    """
    number = _number("job_id", given)
    if not 0 <= number <= _LARGEST:
        raise JobNotFound(f"there is no job {number}", job_id=number)
    return JobId(number)


def batch_id(given: Any) -> BatchId:
    """Return the id of a batch, as `job_id` does.

    Raises:
        InvalidJob: it is no number.
        BatchNotFound: no batch has such a number.
    """
    number = _number("batch_id", given)
    if not 0 <= number <= _LARGEST:
        raise BatchNotFound(f"there is no batch {number}", batch_id=number)
    return BatchId(number)


def _number(field: str, given: Any) -> int:
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) <= 40:
        return int(given)
    raise InvalidJob(f"{field}: must be a number, or its digits")
