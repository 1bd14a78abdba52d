"""The YYC3 AI-Call pipeline: jobs in, outcomes out, each exactly once.

The Python door is `Client` (or `AsyncClient`); the rest is reached through the `yyc3` command.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.client import AsyncClient, Client
    from pipeline.jobs.submit import Batch

__all__ = ["AsyncClient", "Batch", "Client"]


def __getattr__(name: str) -> Any:
    """Import the door when it is used: the guard and the workers live in this package and need none of it."""
    if name in {"AsyncClient", "Client"}:
        from pipeline import client

        return getattr(client, name)
    if name == "Batch":
        from pipeline.jobs.submit import Batch

        return Batch
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
