"""The Celery application that all processes share."""

from datetime import timedelta
from typing import Any

from celery import Celery
from celery.loaders.app import AppLoader

from pipeline.broker.registry import broker_for

TASK_NAME = "yyc3.chunk"


class _OwnLoader(AppLoader):
    """Reads no module that CELERY_CONFIG_MODULE names: in the process of a caller it is that of another program."""

    def read_configuration(self, env: str = "") -> dict[str, Any]:  # noqa: ARG002 - of the base class
        return {}


class _OwnCelery(Celery):
    """Connects to its own broker, wherever CELERY_BROKER_URL leads, which outranks the configuration otherwise."""

    def __init__(self, broker_url: str) -> None:
        self._url = broker_url
        super().__init__("yyc3", broker=broker_url, set_as_current=False, loader=_OwnLoader)

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        return super().connection_for_read(url or self._url, **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        return super().connection_for_write(url or self._url, **options)

    def connection(self, hostname: str | None = None, *arguments: Any, **options: Any) -> Any:
        return super().connection(hostname or self._url, *arguments, **options)


def make_app(broker_url: str, *, visibility: timedelta = timedelta(hours=1)) -> Celery:
    """Return a Celery application: JSON only, early acknowledgement, no results in the broker.

    A message is acknowledged when its task starts: leases in Postgres recover what a lost worker
    held, and a second recovery in the broker would run it twice. `visibility` is for tasks that are
    acknowledged late, see Broker.celery_settings.

    Raises:
        InvalidSetting: no broker has the scheme of this URL.
    """
    settings = broker_for(broker_url).celery_settings(broker_url, visibility)
    app = _OwnCelery(broker_url)
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
        broker_connection_max_retries=None,  # a broker may be unavailable for a night
        broker_connection_timeout=5,
        event_queue_expires=60,
        control_queue_expires=60,
        timezone="UTC",
    )
    app.conf.update(settings)
    return app
