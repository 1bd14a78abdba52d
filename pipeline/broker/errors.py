"""Errors of Celery, kombu, Redis and RabbitMQ, mapped to ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from amqp.exceptions import AccessRefused, AMQPError, MessageNacked, NotAllowed, PreconditionFailed, ResourceLocked
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError, ResponseError

from schemas.errors import BrokerUnavailable

TROUBLE = (OperationalError, RedisError, AMQPError, MessageNacked, OSError)
"""What an idle connection that was closed meanwhile, or a broker that is away, may raise."""


class UnusableQueue(Exception):  # noqa: N818 - it tells of a queue, nothing of ours failed
    """What bears this name in the broker is no queue, or one of another sort; it will be no other the next time."""


@contextmanager
def mapped(what: str = "the message broker") -> Iterator[None]:
    """Foreign errors become BrokerUnavailable, or UnusableQueue; `what` cannot be reached."""
    try:
        yield
    except ResponseError as error:
        if "WRONGTYPE" in str(error):
            raise UnusableQueue from None
        raise BrokerUnavailable(f"{what} refuses a command; is it full, or a replica?") from error
    except (PreconditionFailed, ResourceLocked, AccessRefused, NotAllowed):
        raise UnusableQueue from None
    except TROUBLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BrokerUnavailable(f"{what} cannot be reached: {reason}") from error


__all__ = ["TROUBLE", "UnusableQueue", "mapped"]
