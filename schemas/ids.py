"""Identifiers, so that a job is never mistaken for a batch."""

from typing import NewType

JobId = NewType("JobId", int)
"""A row in `jobs`; also names a chunk, by its first job."""

BatchId = NewType("BatchId", int)
"""What a user submitted together."""

__all__ = ["BatchId", "JobId"]
