"""The Celery application on Redis, Valkey or RabbitMQ, and how our queues are declared there."""

import ssl
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from celery import Celery
from kombu import Exchange, Queue

from pipeline.broker.quarantine import ASIDE, KEPT_MESSAGES
from schemas.intake import INTAKE_QUEUE

TASK_NAME = "yyc3.chunk"
_DEFAULT_EXCHANGE = Exchange("")


def on_redis(broker_url: str) -> bool:
    """Whether this broker is a Redis or Valkey; otherwise it is RabbitMQ."""
    return broker_url.startswith("redis")


def declared(name: str, *, plain: bool = False) -> Queue:
    """A queue as it stands in RabbitMQ: replicated and durable, with a dead-letter queue. On Redis a name is all there is.

    `plain` is durable alone, as every Celery program declares a queue: so are the intake, and queues of others.
    """
    if plain or name == INTAKE_QUEUE:
        return Queue(name, _DEFAULT_EXCHANGE, routing_key=name)
    arguments: dict[str, Any]
    if name == ASIDE:
        arguments = {"x-queue-type": "quorum", "x-max-length": KEPT_MESSAGES, "x-overflow": "drop-head"}
    else:
        arguments = {
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": ASIDE,
            "x-delivery-limit": 10,
        }
    return Queue(name, _DEFAULT_EXCHANGE, routing_key=name, queue_arguments=arguments)


def make_app(broker_url: str, *, visibility: timedelta = timedelta(hours=1)) -> Celery:
    """The Celery application: JSON only, early acknowledgement, no results in the broker.

    A message is acknowledged when its task starts: leases in Postgres recover what a lost worker held, and a second
    recovery in the broker would run it twice. `visibility` is for tasks that are acknowledged late, on Redis: after it, what
    a lost process held goes back to its queue. RabbitMQ gives it back at once.
    """
    app = Celery("yyc3", broker=broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        event_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_default_queue="yyc3.unused",
        task_create_missing_queues=True,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a broker may be away for a night
        broker_connection_timeout=5,
        event_queue_expires=60,
        control_queue_expires=60,
        timezone="UTC",
    )
    app.conf.update(_redis(visibility) if on_redis(broker_url) else _RABBITMQ)
    if broker_url.startswith("rediss"):
        app.conf.broker_use_ssl = _tls(broker_url)
    return app


def _tls(url: str) -> dict[str, Any]:
    """What a rediss URL asks for: kombu looks at the scheme only where the transport is its own. Certificates are verified
    unless it says `ssl_cert_reqs=none`.
    """
    query = dict(parse_qsl(urlsplit(url).query))
    wanted = query.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    given: dict[str, Any] = {"ssl_cert_reqs": _VERIFICATION.get(wanted, ssl.CERT_REQUIRED)}
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        if name in query:
            given[name] = query[name]
    return given


_VERIFICATION = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_RABBITMQ: dict[str, Any] = {"worker_prefetch_multiplier": 1, "broker_heartbeat": 20}


def _redis(visibility: timedelta) -> dict[str, Any]:
    return {
        "broker_transport": "pipeline.broker.quarantine:RedisTransport",
        "worker_disable_prefetch": True,  # what a worker cannot start now stays in the queue, for others
        "broker_transport_options": {
            # Keys of our own: those of other systems on this Redis are not ours to give back, nor ours theirs.
            "unacked_key": "yyc3.unacked",
            "unacked_index_key": "yyc3.unacked_index",
            "unacked_mutex_key": "yyc3.unacked_mutex",
            "visibility_timeout": int(visibility.total_seconds()),
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,  # look each 5 s
            "socket_connect_timeout": 5,
            "socket_timeout": 30,
        },
    }


__all__ = ["TASK_NAME", "declared", "make_app", "on_redis"]
