"""A batch file while everything around it is killed or suspended: it goes on by itself, and no row is lost or doubled."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import orjson
import pytest

from pipeline import Client
from schemas.batches import BatchStatus
from tests.support.audit import audit
from tests.support.sandbox import ROOT, Sandbox, Started, wait_for
from tests.support.servers import Postgres, Valkey

ROWS = 3_000
MAX_NUM_SEQS = 64


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Sandbox, Postgres, Valkey]]:
    """A sandbox on servers of its own."""
    with Postgres(tmp_path / "postgres") as postgres, Valkey(tmp_path / "valkey") as valkey:
        sandbox = Sandbox(postgres.url, valkey.url, tmp_path)
        sandbox.environment["YYC3_LEASE_SECONDS"] = "4"
        yield sandbox, postgres, valkey


def write(file: Path, rows: int) -> Path:
    with file.open("wb") as out:
        for number in range(rows):
            body = {"model": "chatglm3-6b", "messages": [{"role": "user", "content": f"第{number}个"}], "max_tokens": 4}
            line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(orjson.dumps(line) + b"\n")
    return file


def submitter(sandbox: Sandbox, file: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pipeline.cli",
            "batches",
            "submit",
            str(file),
            "--key",
            "k",
            "--usage-mode",
            "approximate",
        ],
        env=sandbox.environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def check(sandbox: Sandbox, client: Client, rows: int) -> None:
    """Every row has one outcome, every custom id is there once, and the output has each of them."""

    def ended() -> bool:
        found = client.batches.list()
        return bool(found) and found[0].status is BatchStatus.COMPLETED

    wait_for(ended, "the batch to end", 150)
    (found,) = client.batches.list()
    assert (found.jobs, found.succeeded, found.failed, found.refused) == (rows, rows, 0, 0)
    assert sandbox.query("SELECT count(*), count(DISTINCT custom_id) FROM jobs") == [(rows, rows)]
    names = [line["custom_id"] for line in client.batches.output(found.batch_id)]
    assert len(names) == len(set(names)) == rows
    assert audit(sandbox.database_url).clean


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "suspended"])
def test_workers_redis_recovery_and_the_reader_at_a_third(
    own: tuple[Sandbox, Postgres, Valkey], how: signal.Signals, tmp_path: Path
) -> None:
    sandbox, _, valkey = own
    file = write(tmp_path / "batch.jsonl", ROWS)
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator("--max-num-seqs", str(MAX_NUM_SEQS), speed=20))
        started: list[Started] = [
            stack.enter_context(sandbox.worker("bulk")),
            stack.enter_context(sandbox.process("pipeline.cli", "recover")),
        ]
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        reader = submitter(sandbox, file)
        wait_for(lambda: sandbox.settled() > ROWS * 0.3, "a third of the outcomes")
        pids = [process.process.pid for process in started]
        for pid in [*pids, *([reader.pid] if reader.poll() is None else [])]:
            os.kill(pid, how)
        in_flight = simulator.state()["rows"] - sandbox.settled()  # sent, and no outcome is stored
        # What runs on: other processes of the same kinds, as a supervisor starts them.
        if how is signal.SIGKILL:
            valkey.end()
            valkey.start()
        else:
            os.kill(valkey.pid, how)
            for pid in pids:
                stack.callback(os.kill, pid, signal.SIGCONT)
            os.kill(valkey.pid, signal.SIGCONT)
        stack.enter_context(sandbox.worker("bulk"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        if reader.poll() is None:
            again = submitter(sandbox, file)
            assert again.wait(120) == 0
            reader.kill()
        reader.wait(60)
        check(sandbox, client, ROWS)
        assert simulator.state()["rows"] - ROWS <= in_flight


def test_a_postgres_that_is_restarted_while_the_file_is_read(
    own: tuple[Sandbox, Postgres, Valkey], tmp_path: Path
) -> None:
    sandbox, postgres, _ = own
    rows = 60_000
    file = write(tmp_path / "batch.jsonl", rows)
    with ExitStack() as stack:
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        reader = submitter(sandbox, file)

        def has_more(seen: int) -> bool:
            return reader.poll() is not None or sandbox.query("SELECT jobs FROM batches")[0][0] > seen

        for how in (signal.SIGQUIT, signal.SIGINT):  # as a crash, which empties tables without a log; and in order
            before = wait_for(lambda: sandbox.query("SELECT max(jobs) FROM batches")[0][0], "some rows")
            postgres.end(how=how)
            postgres.start()
            wait_for(partial(has_more, before), "reading to go on")
        assert reader.wait(120) == 0
        (found,) = client.batches.list()
    assert (found.jobs, found.refused, found.input_complete) == (rows, 0, True)
    assert sandbox.query("SELECT count(*), count(DISTINCT custom_id), sum(position) FROM jobs") == [
        (rows, rows, rows * (rows - 1) // 2)
    ]
    assert sandbox.query("SELECT count(*) FROM pg_class WHERE relname LIKE 'custom_ids_%%'") == [(0,)]
