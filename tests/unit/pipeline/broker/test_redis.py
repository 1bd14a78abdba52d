"""Redis as message broker: TLS."""

import ssl
from typing import Any

import pytest

from pipeline.broker import make_app


@pytest.mark.parametrize(
    ("url", "secured"),
    [
        ("redis://:p@127.0.0.1:9/2", None),
        ("rediss://:p@127.0.0.1:9/2", ssl.CERT_REQUIRED),
        ("rediss://:p@127.0.0.1:9/2?ssl_cert_reqs=none", ssl.CERT_NONE),
        ("rediss://:p@127.0.0.1:9/2?ssl_cert_reqs=CERT_OPTIONAL&ssl_ca_certs=/ca.pem", ssl.CERT_OPTIONAL),
    ],
)
def test_a_rediss_url_is_connected_to_with_tls(url: str, secured: int | None) -> None:
    app = make_app(url)
    with app.connection_for_write() as connection:
        transport: Any = connection.transport
        channel = transport.Channel.__new__(transport.Channel)
        channel.connection = transport
        channel.connection_class, channel.connection_class_ssl = "plain", "tls"
        options: dict[str, Any] = connection.ssl or {}  # type: ignore[assignment]
        assert bool(options) is (secured is not None)
        assert options.get("ssl_cert_reqs") == secured
        assert (connection.password, str(connection.virtual_host).strip("/")) == ("p", "2")
        assert options.get("ssl_ca_certs") == ("/ca.pem" if "ca.pem" in url else None)
    app.close()
