"""Kills, restarts and cuts: no job is lost, and none is done twice."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from pipeline import Client
from schemas.results import JobState
from tests.support.exclusive import exclusive
from tests.support.load import gated_simulator, sentiments
from tests.support.sandbox import Sandbox, Started, wait_for


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[Client]:
    with Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as opened:
        yield opened


def finished_exactly_once(sandbox: Sandbox, count: int) -> None:
    assert sandbox.query("SELECT count(*), count(DISTINCT job_id) FROM outcomes WHERE state = 'succeeded'") == [
        (count, count)
    ]
    assert sandbox.query("SELECT count(*) FROM outcomes") == [(count,)]
    assert sandbox.query("SELECT sum(succeeded), sum(rows), min(state), max(state) FROM chunks") == [
        (count, count, "done", "done")
    ]


def test_sigterm_in_the_middle_loses_no_job_and_costs_no_attempt(sandbox: Sandbox, client: Client) -> None:
    with gated_simulator(sandbox, 60) as gate, sandbox.process("pipeline.cli", "recover"):
        with sandbox.worker("bulk") as first:
            batch = client.submit_many(sentiments(600, cache=True))
            wait_for(lambda: sandbox.settled() > 50 and gate.held_rows, "some outcomes, and requests in flight")
            first.process.send_signal(signal.SIGTERM)
            wait_for(lambda: first.logged("draining"), "the drain to begin")
            gate.open()
            assert first.process.wait(60) == 0
            assert sandbox.settled() < 600
            assert sandbox.query("SELECT count(*) FROM chunks WHERE state = 'running'") == [(0,)]
            assert sandbox.query("SELECT max(crashes), max(rounds) FROM chunks") == [(0, 0)]
        with sandbox.worker("bulk"):
            *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 600
        finished_exactly_once(sandbox, 600)
        assert sandbox.query("SELECT count(*) FROM failed_attempts") == [(0,)]


def test_rows_of_a_killed_worker_finish_in_another_one(sandbox: Sandbox, client: Client) -> None:
    sandbox.environment["YYC3_LEASE_SECONDS"] = "2"
    with gated_simulator(sandbox, 30) as gate, sandbox.process("pipeline.cli", "recover"):
        with sandbox.worker("bulk") as first:
            batch = client.submit_many(sentiments(400, cache=True))
            wait_for(lambda: sandbox.settled() > 20 and gate.held_rows, "some outcomes, and requests in flight")
            first.kill()
        gate.open()
        assert sandbox.settled() < 400
        with sandbox.worker("bulk"):
            *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 400
        finished_exactly_once(sandbox, 400)
        assert sandbox.query("SELECT count(*) > 0 FROM chunks WHERE last_code = 'worker_lost'") == [(True,)]


def test_a_worker_that_was_stopped_past_its_lease_overwrites_no_outcome(sandbox: Sandbox, client: Client) -> None:
    sandbox.environment["YYC3_LEASE_SECONDS"] = "1"
    # xmin is the transaction that wrote the row.
    outcomes = "SELECT job_id, xmin::text FROM outcomes ORDER BY job_id"
    with (
        gated_simulator(sandbox, 10) as gate,
        sandbox.process("pipeline.cli", "recover"),
        sandbox.worker("bulk") as stopped,
    ):
        batch = client.submit_many(sentiments(200, cache=True))
        wait_for(lambda: sandbox.settled() > 5 and gate.held_rows, "some outcomes, and requests in flight")
        stopped.process.send_signal(signal.SIGSTOP)
        gate.open()
        with sandbox.worker("bulk"):
            *_, last = client.watch_batch(batch.batch_id)
            assert last.succeeded == 200
            before = sandbox.query(outcomes)
            stopped.process.send_signal(signal.SIGCONT)
            wait_for(
                lambda: stopped.logged("run was lost: its chunk was requeued|another worker has the chunk"),
                "the stopped worker to notice",
            )
            assert sandbox.query(outcomes) == before
        finished_exactly_once(sandbox, 200)


def test_a_broker_that_lost_every_message_loses_no_job(sandbox: Sandbox, client: Client) -> None:
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator())
        batch = client.submit_many(sentiments(100, cache=True))
        single = client.submit({"kind": "intent", "text": "我要退款"})
        with redis.Redis.from_url(sandbox.redis_url) as broker:
            assert broker.llen("chatglm3-6b.bulk") > 0
            broker.flushdb()
        stack.enter_context(sandbox.worker("bulk"))
        stack.enter_context(sandbox.worker("interactive"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        assert client.result(single, 60).state is JobState.SUCCEEDED
        *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 100


def test_jobs_submitted_while_the_broker_is_away_are_stored_and_run_later(sandbox: Sandbox) -> None:
    nowhere = "redis://127.0.0.1:9/0"
    with Client(database_url=sandbox.database_url, redis_url=nowhere) as client:
        job_id = client.submit({"kind": "intent", "text": "我要退款"})
    with (
        sandbox.simulator(),
        sandbox.worker("interactive"),
        sandbox.process("pipeline.cli", "recover"),
        Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client,
    ):
        assert client.result(job_id, 60).state is JobState.SUCCEEDED


@contextmanager
def database_cut_off(sandbox: Sandbox) -> Iterator[None]:
    """Close every connection to the database of a test, and refuse new ones until the end."""
    server, _, name = sandbox.database_url.rpartition("/")
    admin = Sandbox(f"{server}/postgres", sandbox.redis_url, sandbox.home)
    admin.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    admin.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", name)
    try:
        yield
    finally:
        admin.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def test_results_wait_for_a_database_that_was_cut_off_and_are_stored_once(sandbox: Sandbox, client: Client) -> None:
    with (
        gated_simulator(sandbox, 10) as gate,
        sandbox.process("pipeline.cli", "recover"),
        sandbox.worker("bulk") as worker,
    ):
        batch = client.submit_many(sentiments(300, cache=True))
        wait_for(lambda: sandbox.settled() > 5 and gate.held_rows, "some outcomes, and requests in flight")
        with database_cut_off(sandbox):
            gate.open()
            wait_for(lambda: worker.logged("results wait for the database"), "the worker to notice")
        *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 300
        finished_exactly_once(sandbox, 300)


def test_a_worker_stops_without_its_database_and_its_rows_run_again(sandbox: Sandbox, client: Client) -> None:
    sandbox.environment |= {"YYC3_LEASE_SECONDS": "2", "YYC3_DRAIN_SECONDS": "1"}
    with gated_simulator(sandbox, 10) as gate:
        with sandbox.worker("bulk") as worker:
            batch = client.submit_many(sentiments(200, cache=True))
            wait_for(lambda: sandbox.settled() > 5 and gate.held_rows, "some outcomes, and requests in flight")
            with database_cut_off(sandbox):
                gate.open()
                wait_for(lambda: worker.logged("results wait for the database"), "the worker to notice")
                assert worker.terminate() == 0
        with sandbox.worker("bulk"), sandbox.process("pipeline.cli", "recover"):
            *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 200
        finished_exactly_once(sandbox, 200)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Find the processes that work on a folder, by their arguments and their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = str(folder) in " ".join(process.cmdline()) or process.environ().get("YYC3_HOME") == str(folder)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if mine and process.pid != os.getpid():
            found.append(process)
    return found


@contextmanager
def stack_up(sandbox: Sandbox) -> Iterator[Started]:
    """Run `yyc3 up --simulate`; it is ready when this returns."""
    with ExitStack() as stack:
        with exclusive("ports"):
            up = stack.enter_context(sandbox.process("pipeline.cli", "up", "--simulate", "--json"))
            up.wait_until_logged('"flower_url"', "yyc3 up")
        yield up


@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", ["up", "supervisor"])
def test_kill_9_leaves_no_process_behind_and_the_next_start_finds_the_data(tmp_path: Path, victim: str) -> None:
    sandbox = Sandbox("", "", tmp_path)
    del sandbox.environment["DATABASE_URL"], sandbox.environment["REDIS_URL"]
    folder = tmp_path / "home"
    sandbox.environment["YYC3_HOME"] = str(folder)
    with stack_up(sandbox) as up:
        submitted = sandbox.yyc3("submit", "intent", "--text", "我要退款", "--wait", "--json")
        job = json.loads(submitted.stdout)
        assert job["state"] == "succeeded"
        second = sandbox.yyc3("up", check=2)
        assert "in use by another yyc3 up" in second.stderr
        supervisors = [p for p in processes_of(folder) if "pipeline.local.supervisor" in p.cmdline()]
        assert len(supervisors) == 1
        (supervisors[0] if victim == "supervisor" else up.process).kill()
        wait_for(lambda: not [p for p in processes_of(folder) if p.pid != up.process.pid], "every child to end")
        wait_for(lambda: up.ended, "up itself to end")
    assert "no yyc3 up is running" in sandbox.yyc3("jobs", "show", str(job["job_id"]), check=2).stderr
    with stack_up(sandbox) as up:
        again = json.loads(sandbox.yyc3("jobs", "show", str(job["job_id"]), "--json").stdout)
        assert again["result"] == job["result"]
        assert up.terminate() == 0
    assert processes_of(folder) == []
