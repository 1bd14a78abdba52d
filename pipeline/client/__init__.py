"""The Python client: submit jobs, get outcomes.

asynchronous  AsyncClient, for asyncio
blocking      Client, the same for threads
"""

from pipeline.client.asynchronous import AsyncClient
from pipeline.client.blocking import Client

__all__ = ["AsyncClient", "Client"]
