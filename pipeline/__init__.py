"""The YYC3 AI-Call pipeline: jobs in, outcomes out, each exactly once.

The Python client is `Client` (or `AsyncClient`); everything else is used through the `yyc3` command.

client         submit jobs, get outcomes
stack          everything on this machine, for `yyc3 up`
testing        a pipeline for the test suite of a caller
wiring         adapters from settings
settings       the environment
models         entries of models.toml
files          every file that is written
environment    variables of other programs
jobs           a single job: its way in, and the way of its outcome back
batches        jobs submitted together
calls          recorded calls: readers, jobs, reports
operations     recovery, pruning, dead letters, queue status, health
kinds          job kinds: engine requests and results
policies       pure rules
store          Postgres
broker         doorbells, replies, notifications
engine         vLLM over HTTP
streams        streamed answers
images         images of vision jobs
concurrency    asyncio building blocks
observability  logs
local          local servers and processes under a supervisor
cli            the `yyc3` command
flower         Flower with chunks
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.batches import Batch
    from pipeline.client import AsyncClient, Client

__all__ = ["AsyncClient", "Batch", "Client"]


def __getattr__(name: str) -> Any:
    """Import the client when it is used: supervisor and workers live in this package and need none of it."""
    if name in {"AsyncClient", "Client"}:
        from pipeline import client

        return getattr(client, name)
    if name == "Batch":
        from pipeline.batches import Batch

        return Batch
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
