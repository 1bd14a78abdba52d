"""Data and words of the pipeline: pydantic models that every room shares. Imports nothing of ours."""
