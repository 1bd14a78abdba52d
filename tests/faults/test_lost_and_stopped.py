"""Kills, restarts and cuts: nothing is lost, nothing is done twice."""

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import redis

from pipeline import Client
from schemas.results import JobState
from tests.support.sandbox import Sandbox, wait_for

# Each row's answer takes a while, so that there is a middle to hit.
SLOW = ("--max-num-seqs", "32")


def texts(count: int) -> list[dict[str, object]]:
    return [{"kind": "sentiment", "text": f"第{i}位客户说：太差了，我等了很久 {i * 7919}"} for i in range(count)]


def settled(sandbox: Sandbox) -> int:
    return sandbox.query("SELECT count(*) FROM outcomes")[0][0]


def finished_exactly_once(sandbox: Sandbox, count: int) -> None:
    assert sandbox.query("SELECT count(*), count(DISTINCT job_id) FROM outcomes WHERE state = 'succeeded'") == [
        (count, count)
    ]
    assert sandbox.query("SELECT sum(succeeded), sum(rows), min(state), max(state) FROM chunks") == [
        (count, count, "done", "done")
    ]


def test_sigterm_in_the_middle_loses_nothing_and_burns_no_try(sandbox: Sandbox) -> None:
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator(*SLOW, speed=1))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        with sandbox.worker("bulk") as first:
            batch = client.submit_many(texts(600))
            wait_for(lambda: settled(sandbox) > 50, "some outcomes")
            assert first.terminate() == 0
            done = settled(sandbox)
            assert done < 600
            assert sandbox.query("SELECT count(*) FROM chunks WHERE state = 'running'") == [(0,)]
            assert sandbox.query("SELECT max(crashes), max(rounds) FROM chunks") == [(0, 0)]
        with sandbox.worker("bulk"):
            *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 600
        finished_exactly_once(sandbox, 600)
        assert sandbox.query("SELECT count(*) FROM failed_attempts") == [(0,)]


def test_rows_of_a_worker_that_is_killed_finish_elsewhere(sandbox: Sandbox) -> None:
    sandbox.environment["YYC3_LEASE_SECONDS"] = "2"
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator(*SLOW, speed=1))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        with sandbox.worker("bulk") as first:
            batch = client.submit_many(texts(400))
            wait_for(lambda: settled(sandbox) > 20, "some outcomes")
            first.kill()
        assert settled(sandbox) < 400
        with sandbox.worker("bulk"):
            *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 400
        finished_exactly_once(sandbox, 400)
        assert sandbox.query("SELECT count(*) > 0 FROM chunks WHERE last_code = 'worker_lost'") == [(True,)]


def test_a_worker_that_slept_through_its_lease_writes_nothing_over_the_others(sandbox: Sandbox) -> None:
    sandbox.environment["YYC3_LEASE_SECONDS"] = "1"
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator(*SLOW, speed=1))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        sleeper = stack.enter_context(sandbox.worker("bulk"))
        batch = client.submit_many(texts(200))
        wait_for(lambda: settled(sandbox) > 5, "some outcomes")
        sleeper.process.send_signal(signal.SIGSTOP)
        with sandbox.worker("bulk"):
            *_, last = client.watch_batch(batch.batch_id)
            assert last.succeeded == 200
            before = sandbox.query("SELECT job_id, xid::text FROM outcomes ORDER BY job_id")
            sleeper.process.send_signal(signal.SIGCONT)
            wait_for(lambda: sleeper.says("no longer ours|taken by others"), "the sleeper to notice")
            assert sandbox.query("SELECT job_id, xid::text FROM outcomes ORDER BY job_id") == before
        finished_exactly_once(sandbox, 200)


def test_a_broker_that_forgot_everything_loses_no_job(sandbox: Sandbox) -> None:
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator())
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        batch = client.submit_many(texts(100))
        single = client.submit({"kind": "intent", "text": "我要退款"})
        with redis.Redis.from_url(sandbox.redis_url) as broker:
            assert broker.llen("chatglm3-6b.bulk") > 0
            broker.flushdb()
        stack.enter_context(sandbox.worker("bulk"))
        stack.enter_context(sandbox.worker("interactive"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        assert client.result(single, 30).state is JobState.SUCCEEDED
        *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 100


def test_jobs_are_stored_and_run_later_when_the_broker_is_away_at_submit(sandbox: Sandbox) -> None:
    nowhere = "redis://127.0.0.1:9/0"
    with Client(database_url=sandbox.database_url, redis_url=nowhere) as client:
        job_id = client.submit({"kind": "intent", "text": "我要退款"})
    with (
        sandbox.simulator(),
        sandbox.worker("interactive"),
        sandbox.process("pipeline.cli", "recover"),
        Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client,
    ):
        assert client.result(job_id, 30).state is JobState.SUCCEEDED


def test_results_wait_for_a_database_that_was_cut_off_and_are_stored_once(sandbox: Sandbox) -> None:
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator(*SLOW, speed=1))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        worker = stack.enter_context(sandbox.worker("bulk"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        batch = client.submit_many(texts(300))
        wait_for(lambda: settled(sandbox) > 5, "some outcomes")
        name = sandbox.database_url.rsplit("/", 1)[1]
        admin = Sandbox(sandbox.database_url.rsplit("/", 1)[0] + "/postgres", sandbox.redis_url, sandbox.home)
        admin.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        admin.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", name)
        wait_for(lambda: worker.says("results wait for the database"), "the worker to notice")
        admin.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 300
        finished_exactly_once(sandbox, 300)


def test_a_worker_stops_although_its_database_is_away_and_its_rows_are_run_again(sandbox: Sandbox) -> None:
    sandbox.environment |= {"YYC3_LEASE_SECONDS": "2", "YYC3_DRAIN_SECONDS": "1"}
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator(*SLOW, speed=1))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        name = sandbox.database_url.rsplit("/", 1)[1]
        admin = Sandbox(sandbox.database_url.rsplit("/", 1)[0] + "/postgres", sandbox.redis_url, sandbox.home)
        with sandbox.worker("bulk") as worker:
            batch = client.submit_many(texts(200))
            wait_for(lambda: settled(sandbox) > 5, "some outcomes")
            admin.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            admin.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", name)
            wait_for(lambda: worker.says("results wait for the database"), "the worker to notice")
            assert worker.terminate(30) == 0
            admin.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        with sandbox.worker("bulk"), sandbox.process("pipeline.cli", "recover"):
            *_, last = client.watch_batch(batch.batch_id)
        assert last.succeeded == 200
        finished_exactly_once(sandbox, 200)


def children_of(folder: Path) -> list[psutil.Process]:
    """Processes that work on a folder, found by their arguments, open logs aside."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = str(folder) in " ".join(process.cmdline()) or process.environ().get("YYC3_HOME") == str(folder)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if mine and process.pid != os.getpid():
            found.append(process)
    return found


@pytest.mark.parametrize("victim", ["up", "guard"])
def test_kill_9_leaves_no_process_behind_and_the_next_start_finds_the_data(tmp_path: Path, victim: str) -> None:
    sandbox = Sandbox("", "", tmp_path)
    del sandbox.environment["DATABASE_URL"], sandbox.environment["REDIS_URL"]
    folder = tmp_path / "home"
    sandbox.environment["YYC3_HOME"] = str(folder)
    with sandbox.process("pipeline.cli", "up", "--simulate", "--json") as up:
        wait_for(lambda: up.says('"flower_url"') or up.ended, "up", 60)
        assert not up.ended, up.text
        submitted = sandbox.yyc3("submit", "intent", "--text", "我要退款", "--wait", "--json")
        job = json.loads(submitted.stdout)
        assert job["state"] == "succeeded"
        second = sandbox.yyc3("up", check=2)
        assert "in use by another yyc3 up" in second.stderr
        guards = [p for p in children_of(folder) if "pipeline.local.supervisor" in p.cmdline()]
        assert len(guards) == 1
        (guards[0] if victim == "guard" else up.process).kill()
        wait_for(lambda: not [p for p in children_of(folder) if p.pid != up.process.pid], "every child to end", 60)
        wait_for(lambda: up.ended, "up itself")
    assert "no yyc3 up is running" in sandbox.yyc3("jobs", "show", str(job["job_id"]), check=2).stderr
    with sandbox.process("pipeline.cli", "up", "--simulate", "--json") as up:
        wait_for(lambda: up.says('"flower_url"') or up.ended, "up", 60)
        assert not up.ended, up.text
        again = json.loads(sandbox.yyc3("jobs", "show", str(job["job_id"]), "--json").stdout)
        assert again["result"] == job["result"]
        assert up.terminate(60) == 0
    assert children_of(folder) == []
