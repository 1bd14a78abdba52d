"""All tables together, for people and for one test: migrations create them, a test compares the two."""

from pipeline.store.schema import batch_tables, job_tables
from pipeline.store.schema.columns import metadata

__all__ = ["batch_tables", "job_tables", "metadata"]
