"""One real Postgres and one real Valkey for the session, a database of its own for every test."""

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from pipeline.local.client import SupervisorClient
from pipeline.store import Database
from tests.support.sandbox import Sandbox, new_database

pytest_plugins = ["pipeline.testing"]
_numbers = itertools.count()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupervisorClient]:
    with SupervisorClient(tmp_path_factory.mktemp("servers"), ["postgres", "valkey"]) as home:
        new_database(home.urls["postgres"], "template_yyc3")
        yield home


@pytest.fixture
def sandbox(servers: SupervisorClient, tmp_path: Path) -> Iterator[Sandbox]:
    number = next(_numbers)
    database_url = new_database(servers.urls["postgres"], f"test_{number}", "template_yyc3")
    redis_url = servers.urls["valkey"].rsplit("/", 1)[0] + f"/{number % 15 + 1}"
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    yield Sandbox(database_url, redis_url, tmp_path)
    with psycopg.connect(servers.urls["postgres"], autocommit=True) as connection:
        connection.execute(f"DROP DATABASE test_{number} WITH (FORCE)")


@pytest.fixture
async def database(sandbox: Sandbox) -> AsyncIterator[Database]:
    opened = await Database(sandbox.database_url).open()
    yield opened
    await opened.close()
