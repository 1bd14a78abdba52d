"""Brokers by the scheme of their URL. A new broker is one module and one line here."""

from celery import Celery

from pipeline.broker.protocol import Broker
from pipeline.broker.rabbitmq import RabbitMQBroker
from pipeline.broker.redis import RedisBroker
from schemas.errors import InvalidSetting

_REDIS, _RABBITMQ = RedisBroker(), RabbitMQBroker()
BROKERS: dict[str, Broker] = {
    "redis": _REDIS,
    "rediss": _REDIS,
    "redis+socket": _REDIS,
    "unix": _REDIS,
    "amqp": _RABBITMQ,
    "amqps": _RABBITMQ,
}


def broker_for(url: str) -> Broker:
    """Return the broker of a URL.

    Raises:
        InvalidSetting: no broker has this scheme.
    """
    scheme = url.partition("://")[0]
    try:
        return BROKERS[scheme]
    except KeyError:  # the scheme is not repeated: without :// it may be a password
        known = ", ".join(f"{name}://" for name in BROKERS)
        raise InvalidSetting(f"BROKER_URL must begin with one of {known}") from None


def broker_of(app: Celery) -> Broker:
    """Return the broker that a Celery application uses."""
    return broker_for(str(app.conf.broker_url))
