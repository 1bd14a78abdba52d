"""Addresses of Redis: TCP, TLS and unix sockets, for redis-py and for Celery."""

import pytest

from pipeline.redis_url import parse_redis_url, socket_url
from pipeline.settings import load_settings
from schemas.errors import InvalidSetting


@pytest.mark.parametrize(
    ("given", "url", "socket", "broker"),
    [
        ("redis://:p@h:1/2", "redis://:p@h:1/2", None, "redis://:p@h:1/2"),
        ("rediss://h/0", "rediss://h/0", None, "rediss://h/0"),
        ("redis+socket:///run/r.sock", "unix:///run/r.sock?db=0", "/run/r.sock", "redis://localhost/0"),
        (
            "redis+socket://:p%40ss@/run/My%20Folder/r.sock?virtual_host=/3",
            "unix://:p%40ss@/run/My%20Folder/r.sock?db=3",
            "/run/My Folder/r.sock",
            "redis://:p%40ss@localhost/3",
        ),
        ("unix://u:p@/r.sock?db=5", "unix://u:p@/r.sock?db=5", "/r.sock", "redis://u:p@localhost/5"),
    ],
)
def test_every_form_is_read(given: str, url: str, socket: str | None, broker: str) -> None:
    address = parse_redis_url(given)
    assert (address.url, address.socket, address.broker_url) == (url, socket, broker)


def test_the_url_of_a_socket_is_read_back() -> None:
    assert parse_redis_url(socket_url("secret", "/tmp/通 话/v.sock")).socket == "/tmp/通 话/v.sock"


PATH, NUMBER = "needs the whole path of the socket", "virtual_host is the number of a database"


@pytest.mark.parametrize(
    ("name", "url", "reason"),
    [
        ("REDIS_URL", "redis+socket://run/redis.sock", PATH),
        ("BROKER_URL", "redis+socket://run/redis.sock", PATH),
        ("REDIS_URL", "redis+socket://:secret@", PATH),
        ("BROKER_URL", "redis+socket:///r.sock?virtual_host=first", NUMBER),
        ("REDIS_URL", "http://:secret@h", r"must begin with redis:// or rediss:// or redis\+socket:// or unix://"),
    ],
)
def test_another_form_is_refused_by_name_and_without_the_url(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str, reason: str
) -> None:
    monkeypatch.setenv(name, url)
    with pytest.raises(InvalidSetting, match=f"{name}: .*{reason}") as refused:
        load_settings()
    assert "secret" not in refused.value.message
