"""The plain stack: one Celery task a job, a blocking HTTP client, one INSERT a result."""

import os
from typing import Any

import httpx
import psycopg
from celery import Celery

from pipeline import kinds
from pipeline.kinds import Constraint, EndpointProfile
from pipeline.models import LabelForm
from schemas.jobs import parse_job


def make_app(redis_url: str) -> Celery:
    """Make a Celery application as a tutorial does."""
    app = Celery("plain", broker=redis_url)
    app.conf.update(task_ignore_result=True, accept_content=["json"], broker_connection_retry_on_startup=True)
    return app


app = make_app(os.environ.get("PLAIN_REDIS", "redis://127.0.0.1:6379/0"))
_open: dict[str, Any] = {}


@app.task(name="plain")
def run(job: int, text: str) -> None:
    """Send one text to the engine and store the answer."""
    if not _open:
        _open["http"] = httpx.Client(base_url=os.environ["PLAIN_ENGINE"], timeout=60, trust_env=False)
        _open["database"] = psycopg.connect(os.environ["PLAIN_DATABASE"], autocommit=True)
    request = kinds.build(
        parse_job({"kind": "intent", "text": text}),
        EndpointProfile(LabelForm.WORD, Constraint.STRUCTURED_OUTPUTS, 8192),
    )
    body = {
        "model": "chatglm3-6b",
        "messages": [*request.template.prefix, *request.messages],
        **request.template.parameters,
    }
    response = _open["http"].post("/v1/chat/completions", json=body)
    response.raise_for_status()
    answer = response.json()
    content, tokens = answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]
    _open["database"].execute("INSERT INTO plain_results VALUES (%s, %s, %s)", (job, content, tokens))


__all__ = ["app", "make_app", "run"]
