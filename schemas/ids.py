"""Identifiers, with types of their own, so that a job is never mistaken for a batch."""

from typing import NewType

JobId = NewType("JobId", int)
"""A row of `jobs`; a chunk is named by its first job."""

BatchId = NewType("BatchId", int)
"""Jobs that a caller submitted together."""
