"""Processes say that they live; health says which one does not, and what waits because of it."""

import signal
from typing import Any

import orjson
import redis

from tests.support.sandbox import Sandbox, wait_for


def findings(sandbox: Sandbox, **environment: str) -> dict[str, dict[str, Any]]:
    lines = sandbox.yyc3("health", "--json", check=None, **environment).stdout.splitlines()
    return {finding["part"]: finding for finding in map(orjson.loads, lines)}


def seen(sandbox: Sandbox) -> set[str]:
    return {str(role) for (role,) in sandbox.query("SELECT role FROM processes")}


def test_every_process_has_a_row_and_takes_it_along_when_it_stops(sandbox: Sandbox) -> None:
    with sandbox.simulator(), sandbox.worker("bulk") as worker, sandbox.process("workers.intake") as intake:
        with sandbox.process("pipeline.cli", "recover") as recovery:
            wait_for(lambda: seen(sandbox) == {"worker", "intake", "recovery"}, "three heartbeats")
            found = findings(sandbox)["processes"]
            assert found["ok"], found
            assert found["seen"] == "1 intake, 1 recovery, 1 worker"
            recovery.terminate()
            wait_for(lambda: seen(sandbox) == {"worker", "intake"}, "the recovery to be forgotten")
        found = findings(sandbox)["processes"]
        assert not found["ok"]
        assert "no recovery runs" in found["seen"]
        assert "yyc3 recover" in found["advice"]
        assert worker.terminate() == 0
        assert intake.terminate() == 0
    wait_for(lambda: not seen(sandbox), "every process to be forgotten")


def test_a_process_that_hangs_is_named(sandbox: Sandbox) -> None:
    with sandbox.process("pipeline.cli", "recover") as recovery:
        wait_for(lambda: seen(sandbox) == {"recovery"}, "its heartbeat")
        recovery.process.send_signal(signal.SIGSTOP)
        sandbox.query("UPDATE processes SET seen_at = now() - interval '20 seconds'")
        found = findings(sandbox)["processes"]
        recovery.process.send_signal(signal.SIGCONT)
        assert not found["ok"]
        assert f"recovery.{recovery.process.pid}@" in found["seen"]
        assert "has been silent since" in found["seen"]
        assert "no recovery runs" in found["seen"]
        wait_for(lambda: findings(sandbox)["processes"]["ok"], "it to be heard of again")


def test_a_process_that_was_lost_and_replaced_is_told_and_no_alarm(sandbox: Sandbox) -> None:
    with sandbox.process("pipeline.cli", "recover") as lost:
        wait_for(lambda: seen(sandbox) == {"recovery"}, "its heartbeat")
        lost.kill()
    sandbox.query("UPDATE processes SET seen_at = now() - interval '20 seconds'")
    with sandbox.process("pipeline.cli", "recover"):
        wait_for(lambda: sandbox.query("SELECT count(*) FROM processes") == [(2,)], "the one that replaces it")
        found = findings(sandbox)["processes"]
    assert found["ok"], found
    assert f"recovery.{lost.process.pid}@" in found["seen"]


def test_messages_that_no_intake_takes_are_counted(sandbox: Sandbox) -> None:
    with sandbox.process("pipeline.cli", "recover"), redis.Redis.from_url(sandbox.redis_url) as broker:
        wait_for(lambda: seen(sandbox) == {"recovery"}, "its heartbeat")
        broker.lpush("yyc3.intake", b"one", b"two")
        found = findings(sandbox)["processes"]
        assert "no intake runs, and 2 messages wait in yyc3.intake" in found["seen"]


def test_leases_that_differ_are_named(sandbox: Sandbox) -> None:
    with (
        sandbox.process("pipeline.cli", "recover"),
        sandbox.process("pipeline.cli", "recover", YYC3_LEASE_SECONDS="60"),
    ):
        wait_for(lambda: sandbox.query("SELECT count(*) FROM processes") == [(2,)], "two heartbeats")
        found = findings(sandbox)["processes"]
        assert "different leases: 20 s, 60 s" in found["seen"]
        assert "YYC3_LEASE_SECONDS" in found["advice"]


def test_running_jobs_without_a_holder_and_dead_letters_are_counted(sandbox: Sandbox) -> None:
    sandbox.query(
        """INSERT INTO chunks (first_job_id, rows, tenant, model, lane, state, run_id, started_at, lease_expires_at)
           VALUES (1, 496, 'default', 'chatglm3-6b', 'bulk', 'running', gen_random_uuid(), now(),
                   now() - interval '1 minute')"""
    )
    found = findings(sandbox)["work"]
    assert not found["ok"]
    assert "496 jobs are running and no process holds them" in found["seen"]
    assert "0 dead letters" in found["seen"]
    (queue,) = [
        orjson.loads(line)
        for line in sandbox.yyc3("queues", "--json").stdout.splitlines()
        if b"chatglm3-6b.bulk" in line.encode()
    ]
    assert queue["oldest_running_seconds"] is not None
