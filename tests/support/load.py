"""Jobs and engines for tests of faults, and the end that every fault has."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.support.audit import audit
from tests.support.faulty_proxy import Gate, Proxy
from tests.support.sandbox import Sandbox, Simulator, wait_for

Job = dict[str, object]


def sentiments(count: int, *, cache: bool = False) -> list[Job]:
    """Different jobs that are answered with one token; `cache` allows stored answers to equal questions."""
    return [{"kind": "sentiment", "text": f"第{i}位客户说：太差了，我等了很久", "cache": cache} for i in range(count)]


@contextmanager
def gated(sandbox: Sandbox, simulator: Simulator, rows: int) -> Iterator[Gate]:
    """Put a gate in front of a simulator; the environment names it as the model's endpoint."""
    with Proxy(simulator.url) as proxy:
        sandbox.environment["AI_BASE_URL"] = proxy.url
        yield Gate(proxy, rows)


@contextmanager
def gated_simulator(sandbox: Sandbox, rows: int) -> Iterator[Gate]:
    """Run a simulator that answers the first requests, with this many rows together, and holds the later ones."""
    with sandbox.simulator() as simulator, gated(sandbox, simulator, rows) as gate:
        yield gate


def settled(sandbox: Sandbox) -> int:
    """Count the outcomes; 0 while the database is unavailable."""
    try:
        return sandbox.settled()
    except psycopg.Error:
        return 0


def wait_until_done(sandbox: Sandbox, jobs: int, seconds: float = 120) -> None:
    """Wait until each job has an outcome and each chunk is done; every outcome is a success, and the audit is clean."""
    wait_for(lambda: settled(sandbox) == jobs, f"{jobs} outcomes", seconds)
    wait_for(lambda: sandbox.query("SELECT count(*) FROM chunks WHERE state <> 'done'") == [(0,)], "chunks to be done")
    found = audit(sandbox.database_url)
    assert (found.jobs, found.clean) == (jobs, True), found
    assert sandbox.query("SELECT DISTINCT state FROM outcomes") == [("succeeded",)]
