"""Fixtures of the acceptance tests."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from pipeline.local.client import SupervisorClient
from tests.support.sandbox import ROOT, Sandbox, drop_database, new_database


@pytest.fixture(scope="module")
def module_sandbox(
    servers: SupervisorClient, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sandbox]:
    """A sandbox that the tests of a module share. Its Redis database is number 0, which the `sandbox` fixture leaves."""
    name = re.sub(r"\W", "_", request.module.__name__.rpartition(".")[2])
    database_url = new_database(servers, name, "template_yyc3")
    redis_url = servers.tcp_urls["valkey"].rsplit("/", 1)[0] + "/0"
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    yield Sandbox(database_url, redis_url, tmp_path_factory.mktemp(name))
    drop_database(servers, name)


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which Node programs find the packages of tests/node; without Node skipped, but in CI a failure."""
    if "CI" not in os.environ and not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node is not installed")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / "tests" / "node" / name, folder)
    done = subprocess.run(["npm", "ci", "--silent"], cwd=folder, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, f"npm ci ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return folder
