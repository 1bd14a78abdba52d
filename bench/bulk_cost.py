"""Measure the CPU time of our processes for one bulk job, beside the plain stack in the same run.

20,000 different intent jobs go through the pipeline, then 2,000 of them through the plain stack (one Celery prefork task
a job, httpx.Client, one INSERT a result) with the same simulator and servers. Counted is user and system time of producer
and worker, not of the servers and the simulator. The simulator runs 1,000 times faster than life; no cache is involved.
"""

import os
import subprocess
import sys
import time

import httpx
import psutil
import psycopg

from bench.plain import make_app
from bench.setting import Idle, cpu_seconds, fast_pipeline, processes_of, show, wait_for
from pipeline import Client
from pipeline.stack import Stack

JOBS = 20_000
PLAIN_JOBS = 2_000


def texts(count: int) -> list[str]:
    """Make different utterances of a usual length."""
    return [
        f"您好，我是第{i}位客户，上个月的账单多扣了{i % 97}元，之前客服说会退，到现在也没有退回来，麻烦查一下。"
        for i in range(count)
    ]


def pipeline_way(stack: Stack) -> dict[str, float]:
    """Submit in one batch, wait for all."""
    jobs = [{"kind": "intent", "text": text, "cache": False} for text in texts(JOBS)]
    workers = processes_of(stack, "workers.main bulk")
    with Client() as client:
        warm = client.submit_many(jobs[:64])
        list(client.watch_batch(warm.batch_id))
        before, mine, started = cpu_seconds(workers), time.process_time(), time.perf_counter()
        batch = client.submit_many(jobs)
        producer = time.process_time() - mine
        *_, last = client.watch_batch(batch.batch_id)
        seconds = time.perf_counter() - started
    assert last.succeeded == JOBS, last
    worker = cpu_seconds(workers) - before
    return {
        "pipeline_us_per_job": (producer + worker) / JOBS * 1e6,
        "pipeline_producer_us_per_job": producer / JOBS * 1e6,
        "pipeline_worker_us_per_job": worker / JOBS * 1e6,
        "jobs_per_second": JOBS / seconds,
    }


def plain_way(stack: Stack) -> dict[str, float]:
    """Submit one message a job, wait for all rows."""
    addresses = stack.addresses
    url = addresses.simulated["chatglm3-6b"]
    with psycopg.connect(addresses.database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE plain_results (job int PRIMARY KEY, answer text, prompt_tokens int)")
    environment = {"PLAIN_REDIS": addresses.redis_url, "PLAIN_DATABASE": addresses.database_url, "PLAIN_ENGINE": url}
    arguments = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "bench.plain",
        "worker",
        "-P",
        "prefork",
        "-c",
        "4",
        "-l",
        "ERROR",
    ]
    worker = subprocess.Popen([*arguments, "-Q", "plain"], env={**os.environ, **environment})
    try:
        app = make_app(addresses.redis_url)
        while not app.control.ping(timeout=0.5):
            assert worker.poll() is None
        for i in range(4):
            app.send_task("plain", args=(-1 - i, "预热"), queue="plain")
        _wait(addresses.database_url, 4)
        tree = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
        before, mine, started = cpu_seconds(tree), time.process_time(), time.perf_counter()
        for i, text in enumerate(texts(PLAIN_JOBS)):
            app.send_task("plain", args=(i, text), queue="plain")
        producer = time.process_time() - mine
        _wait(addresses.database_url, 4 + PLAIN_JOBS)
        seconds = time.perf_counter() - started
        used = cpu_seconds(tree) - before
    finally:
        worker.terminate()
        worker.wait()
    return {"plain_us_per_job": (producer + used) / PLAIN_JOBS * 1e6, "plain_jobs_per_second": PLAIN_JOBS / seconds}


def _wait(database_url: str, rows: int) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        stored = "SELECT count(*) >= %s FROM plain_results"
        wait_for(lambda: connection.execute(stored, (rows,)).fetchall() == [(True,)], "the plain stack", 600)


def main() -> None:
    """Run both and compare them."""
    with fast_pipeline() as stack:
        httpx.get(stack.addresses.simulated["chatglm3-6b"] + "/health", trust_env=False).raise_for_status()
        idle = Idle()
        ours = pipeline_way(stack)
        idle_share = idle.share()
        plain = plain_way(stack)
    ratio = plain["plain_us_per_job"] / ours["pipeline_us_per_job"]
    show(
        "cost of a bulk job",
        {**ours, **plain, "ratio": ratio, "jobs": JOBS, "plain_jobs": PLAIN_JOBS, "idle_share": idle_share},
    )


if __name__ == "__main__":
    main()
