"""The Celery application that all processes share."""

from datetime import timedelta

from celery import Celery

from pipeline.broker.registry import broker_for

TASK_NAME = "yyc3.chunk"


def make_app(broker_url: str, *, visibility: timedelta = timedelta(hours=1)) -> Celery:
    """Return a Celery application: JSON only, early acknowledgement, no results in the broker.

    A message is acknowledged when its task starts: leases in Postgres recover what a lost worker
    held, and a second recovery in the broker would run it twice. `visibility` is for tasks that are
    acknowledged late, see Broker.celery_settings.

    Raises:
        InvalidSetting: no broker has the scheme of this URL.
    """
    settings = broker_for(broker_url).celery_settings(broker_url, visibility)
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
        broker_connection_max_retries=None,  # a broker may be unavailable for a night
        broker_connection_timeout=5,
        event_queue_expires=60,
        control_queue_expires=60,
        timezone="UTC",
    )
    app.conf.update(settings)
    return app
