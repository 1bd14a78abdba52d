"""The YYC3 AI-Call pipeline: jobs in, outcomes out, each exactly once.

The Python door is `Client` (or `AsyncClient`); the rest is reached through the `yyc3` command.
"""

from pipeline.client import AsyncClient, Client
from pipeline.submit import Batch

__all__ = ["AsyncClient", "Batch", "Client"]
