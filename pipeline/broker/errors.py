"""Errors of Celery, kombu, Redis and RabbitMQ, translated to ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from amqp.exceptions import AccessRefused, AMQPError, MessageNacked, NotAllowed, PreconditionFailed, ResourceLocked
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError, ResponseError

from schemas.errors import BrokerUnavailable

CONNECTION_ERRORS = (OperationalError, RedisError, AMQPError, MessageNacked, OSError)
"""What an idle connection that was closed meanwhile, or an unavailable broker, may raise."""


class UnusableQueue(Exception):  # noqa: N818 - it describes a queue, nothing of ours failed
    """The name belongs to something that is not a queue, or to a queue with other settings; retrying does not help."""


@contextmanager
def translate_errors(service: str = "the message broker") -> Iterator[None]:
    """Translate foreign errors to BrokerUnavailable or UnusableQueue; `service` is named in the message."""
    try:
        yield
    except ResponseError as error:
        if "WRONGTYPE" in str(error):
            raise UnusableQueue from None
        raise BrokerUnavailable(f"{service} refuses a command; is it full, or a replica?") from error
    except (PreconditionFailed, ResourceLocked, AccessRefused, NotAllowed):
        raise UnusableQueue from None
    except CONNECTION_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BrokerUnavailable(f"{service} cannot be reached: {reason}") from error
