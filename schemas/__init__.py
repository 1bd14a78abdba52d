"""The data of the pipeline: pydantic models that all packages share. Imports nothing of ours.

jobs           what may be submitted, one model for each kind
results        results, one model for each kind, and outcomes
errors         every way in which a job or a call can fail
doorbells      messages without payload
intake         the queue for callers that use Celery
streams        streamed answers
calls          recorded calls and their reports
answer_schema  JSON schemas of callers
ids, timings   identifiers; durations and tokens
published      JSON Schema and TypeScript types
"""
