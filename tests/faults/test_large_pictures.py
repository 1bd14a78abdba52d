"""Many large pictures at once: memory of every process stays bounded, and all are answered."""

import base64
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import redis
from celery import Celery
from PIL import Image

from pipeline.testing import PipelineUnderTest
from schemas.results import JobState
from tests.support.sandbox import wait_for

PICTURES = 24
MOST_MIB = 400  # 24 pictures that are all in memory at once, several times each, need more


def picture() -> str:
    """A picture of 4.5 MB, which no format makes smaller."""
    written = io.BytesIO()
    Image.frombytes("RGB", (1_300, 1_200), os.urandom(1_300 * 1_200 * 3)).save(written, "PNG")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


@contextmanager
def peak_of(process: psutil.Process) -> Iterator[list[int]]:
    """Watch the memory of a process; the list has its peak in MiB at the end."""
    stop, peak = threading.Event(), [0]

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss >> 20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()


def process_of(home: str, part: str) -> psutil.Process:
    for process in psutil.process_iter():
        try:
            if part in " ".join(process.cmdline()) and process.environ().get("YYC3_HOME") == home:
                return process
        except psutil.Error:
            continue
    raise AssertionError(part)


def test_pictures_through_intake_and_worker_at_once() -> None:
    job = {"kind": "vision", "question": "这是什么？", "images": [picture()]}
    with PipelineUnderTest(speed=20) as yyc3:
        yyc3.start_intake()
        app = Celery("caller", broker=yyc3.redis_url)
        intake, worker = (process_of(str(yyc3.home), part) for part in ("workers.intake", "workers.main interactive"))
        with peak_of(intake) as of_intake, peak_of(worker) as of_worker, redis.Redis.from_url(yyc3.redis_url) as broker:
            for number in range(PICTURES):
                given = {**job, "job_key": f"k{number}", "reply_to": "back"}
                app.send_task("yyc3.submit", queue="yyc3.intake", kwargs=given)
            wait_for(lambda: broker.llen("back") == 2 * PICTURES, "all replies", 120)
        with yyc3.client() as client:
            assert client.result(client.submit(job), timeout=60).state is JobState.SUCCEEDED
    assert of_intake[0] < MOST_MIB
    assert of_worker[0] < MOST_MIB
