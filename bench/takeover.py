"""Measure how long after kill -9 of a worker its jobs run in another one, with the default lease.

Bulk workers share a simulator. The one with a run is killed, and the clock stops when another worker has claimed a chunk
of the killed one. Prints each of the rounds.
"""

import time
from statistics import median

import psutil
import psycopg

from bench.engines import chat, more_workers
from bench.setting import fast_pipeline, show, wait_for
from pipeline import Client
from pipeline.wiring import Wiring

ROUNDS = 3
_HELD = "SELECT DISTINCT worker FROM chunks WHERE state = 'running' AND batch_id = %s"
_TAKEN = """
SELECT count(*) FROM chunks WHERE batch_id = %s AND last_code = 'worker_lost' AND state <> 'queued' AND worker <> %s
"""


def one_round(database_url: str, number: int) -> float:
    """Kill a worker with a run; returns the seconds until another worker has one of its chunks."""
    with Client() as client, psycopg.connect(database_url, autocommit=True) as connection:
        batch = client.submit_many([chat(1_000_000 * number + i, 64) for i in range(4_000)])
        workers: list[str] = []

        def claimed() -> bool:
            workers[:] = [row[0] for row in connection.execute(_HELD, (batch.batch_id,)).fetchall()]
            return bool(workers)

        wait_for(claimed, "a worker with a run")
        victim = workers[0]
        time.sleep(2)  # it is in the middle
        psutil.Process(int(victim.split("@")[0].rsplit(".", 1)[1])).kill()
        began = time.monotonic()
        wait_for(lambda: connection.execute(_TAKEN, (batch.batch_id, victim)).fetchall() != [(0,)], "a takeover")
        return time.monotonic() - began


def main() -> None:
    """Kill three workers, each in the middle of a run."""
    with fast_pipeline(speed=2) as stack:
        more_workers(stack, ROUNDS)
        url = Wiring.from_environment().database_url
        taken = [one_round(url, number) for number in range(ROUNDS)]
    show(
        "takeover after kill -9",
        {f"round_{i}_seconds": value for i, value in enumerate(taken)} | {"median_seconds": median(taken)},
    )


if __name__ == "__main__":
    main()
