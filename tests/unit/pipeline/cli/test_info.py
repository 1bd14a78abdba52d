"""What `yyc3 info` shows of an address: where it leads, and no secret."""

import pytest

from pipeline.cli.info import _masked


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:SECRET@h:1/d?host=/run/pg&require_auth=x", "postgresql://u:***@h:1/d?host=/run/pg"),
        ("postgresql:///d?password=SECRET&host=/run/pg", "postgresql:///d?host=/run/pg"),
        ("redis://:p@SECRET@h/0", "redis://:***@h/0"),
        ("rediss://h/0?password=SECRET", "rediss://h/0"),
        ("redis+socket://:SECRET@/run/r.sock?virtual_host=3", "redis+socket://:***@/run/r.sock?virtual_host=3"),
        ("amqp://guest:SECRET@h:5672//", "amqp://guest:***@h:5672//"),
        ("redis://h:6379/0", "redis://h:6379/0"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert _masked(url) == shown
