"""Variables of other programs steer nothing here."""

from collections.abc import Iterator

import pytest

from pipeline.broker import make_app
from pipeline.environment import take_out_others
from pipeline.store.connecting import parse_url


def test_what_libraries_would_read_is_taken_out_and_ours_stays() -> None:
    ours = {"YYC3_FLOWER_PORT": "1", "DATABASE_URL": "d", "AI_API_KEY": "k", "PATH": "/bin", "SSL_CERT_FILE": "c"}
    others = {
        "CELERY_BROKER_URL": "redis://elsewhere",
        "CELERY_CONFIG_MODULE": "their.settings",
        "FLOWER_PORT": "tcp://10.0.0.5:5555",
        "PGSSLMODE": "require",
        "PGSERVICE": "x",
        "KOMBU_LOG_DEBUG": "1",
        "http_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "no_proxy": "*",
        "PYTHONWARNINGS": "error",
        "PYTHONIOENCODING": "gbk",
    }
    environment = ours | others
    assert sorted(take_out_others(environment)) == sorted(others)
    assert environment == ours


@pytest.fixture
def other_celery(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set what another program sets; a client lives in its process, so the variables stay."""
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.setenv(name, "redis://127.0.0.1:9/0")
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "a.module.that.is.not.there")
    monkeypatch.setenv("CELERY_LOADER", "not.there:Loader")
    yield


@pytest.mark.usefixtures("other_celery")
def test_our_celery_connects_to_our_broker_whatever_another_program_sets() -> None:
    app = make_app("redis://127.0.0.1:6379/5")
    for connect in (app.connection_for_read, app.connection_for_write, app.connection):
        with connect() as connection:
            assert (connection.port, connection.virtual_host) == (6379, "5")
    with app.producer_or_acquire() as producer:
        assert producer.connection.port == 6379
    app.close()


@pytest.mark.parametrize(
    ("url", "sslmode"), [("postgresql://u@h/d", "prefer"), ("postgresql://u@h/d?sslmode=verify-full", "verify-full")]
)
def test_libpq_takes_no_mode_that_the_url_does_not_name(url: str, sslmode: str) -> None:
    address = parse_url(url)
    given = address.arguments()
    assert given.get("sslmode", "verify-full") == sslmode
    assert given["gssencmode"] == "disable"
    assert given["channel_binding"] == "prefer"
