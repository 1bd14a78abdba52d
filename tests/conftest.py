"""One real Postgres and one real Valkey for each test process, and a database of its own for every test.

pytest-xdist gives every worker process a session of its own, so each has its own servers, on ports that
the supervisor chose; within a process tests run one after another.
"""

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from pipeline.environment import take_out_others
from pipeline.local.client import SupervisorClient
from pipeline.store import Database
from tests.support.sandbox import Sandbox, admin_url, drop_database, new_database

pytest_plugins = ["pipeline.testing"]
take_out_others()  # tests use libpq and Celery directly, too
_TEMPLATE = "template_yyc3"
_REDIS_DATABASES = 15  # of 16, without the default one
_numbers = itertools.count()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupervisorClient]:
    """The servers of this process, with a database that is copied for every test."""
    with SupervisorClient(tmp_path_factory.mktemp("servers"), ["postgres", "valkey"], tcp=True) as running:
        new_database(running, _TEMPLATE)
        yield running


@pytest.fixture
def sandbox(servers: SupervisorClient, tmp_path: Path) -> Iterator[Sandbox]:
    """A database with our tables and an empty Redis, for one test."""
    number = next(_numbers)
    database_url = new_database(servers, f"test_{number}", _TEMPLATE)
    redis_url = servers.tcp_urls["valkey"].rsplit("/", 1)[0] + f"/{number % _REDIS_DATABASES + 1}"
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    yield Sandbox(database_url, redis_url, tmp_path, admin_url(servers.folder, servers.tcp_urls["postgres"]))
    drop_database(servers, f"test_{number}")


@pytest.fixture
async def database(sandbox: Sandbox) -> AsyncIterator[Database]:
    """The pool of the sandbox's database."""
    opened = await Database(sandbox.database_url).open()
    yield opened
    await opened.close()
