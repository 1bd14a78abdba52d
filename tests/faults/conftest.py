"""Brokers of a test's own, of every kind that is supported."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import Broker, RabbitMQ, Redis7, Valkey

_NEEDS = {"valkey": None, "redis": "redis-server", "rabbitmq": "rabbitmq-server"}
_KINDS: dict[str, type[Valkey] | type[RabbitMQ]] = {"valkey": Valkey, "redis": Redis7, "rabbitmq": RabbitMQ}


@pytest.fixture(scope="module", params=list(_KINDS))
def broker_of_its_own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One for each module and kind; Debian's packages are skipped at a desk that lacks them, and never in CI."""
    needs = _NEEDS[request.param]
    if needs is not None and shutil.which(needs) is None:
        assert not os.environ.get("CI"), f"CI installs {needs}"
        pytest.skip(f"{needs} is not installed")
    folder: Path = tmp_path_factory.mktemp(request.param)
    with _KINDS[request.param](folder) as broker:
        yield broker
