"""`yyc3 dead-letters`, as an operator uses it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psycopg

from pipeline.testing import PipelineUnderTest
from schemas.results import JobState
from tests.support.sandbox import ROOT, wait_for


def yyc3_command(yyc3: PipelineUnderTest, *arguments: str, check: int = 0) -> str:
    """Run a command against the pipeline under test; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "dead-letters", *arguments],
        env=yyc3.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == check, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_an_operator_finds_discards_and_replays_dead_letters(yyc3: PipelineUnderTest) -> None:
    yyc3.inject_fault("坏", "422")
    with yyc3.client() as client:
        batch = client.submit_many({"kind": "sentiment", "text": f"坏{i}", "cache": False} for i in range(6))
        *_, last = client.watch_batch(batch.batch_id)
        assert last.failed == 6
        one = ("--batch", str(batch.batch_id))
        listed = [json.loads(line) for line in yyc3_command(yyc3, "list", *one, "--json").splitlines()]
        assert [(group["code"], group["jobs"]) for group in listed] == [("request_rejected", 6)]
        assert "request_rejected" in yyc3_command(yyc3, "list", *one)
        letter = json.loads(yyc3_command(yyc3, "list", *one, "--each", "--limit", "1", "--json"))
        job_id = str(letter["job_id"])
        assert "failed" in yyc3_command(yyc3, "show", job_id)
        assert "no filter: give --code, --model, " in yyc3_command(yyc3, "replay", check=2)
        assert "1 discarded" in yyc3_command(yyc3, "discard", "--job", job_id)
        yyc3.reset()  # the fault is repaired
        printed = yyc3_command(yyc3, "replay", *one, "--code", "request_rejected", "--since", "1h")
        assert "5 replayed" in printed
        *_, last = client.watch_batch(batch.batch_id)
        assert (last.succeeded, last.failed, last.finished) == (5, 1, True)
        assert client.get(batch.job_ids[0]).state is JobState.SUCCEEDED
        assert client.get(batch.job_ids[-1]).state is JobState.FAILED
        assert "no dead letters match" in yyc3_command(yyc3, "list", *one)
        assert "no dead letters match" in yyc3_command(yyc3, "replay", *one, check=1)


def test_ctrl_c_stops_a_replay_and_leaves_the_rest_unchanged(yyc3: PipelineUnderTest, tmp_path: Path) -> None:
    yyc3.inject_fault("糟", "422")
    with yyc3.client() as client:
        batch = client.submit_many({"kind": "sentiment", "text": f"糟{i}", "cache": False} for i in range(3_000))
        *_, last = client.watch_batch(batch.batch_id)
        assert last.failed == 3_000
        log = tmp_path / "replay.log"
        with log.open("wb") as output:
            running = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "dead-letters", "replay", "--batch", str(batch.batch_id)],
                env={**yyc3.environment, "PYTHONUNBUFFERED": "1"},
                cwd=ROOT,
                stdout=output,
                stderr=output,
                # The shell that runs the tests may ignore SIGINT, as shells do for processes in the background.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        with psycopg.connect(yyc3.database_url, autocommit=True) as connection:

            def replayed() -> int:
                row = connection.execute(
                    "SELECT count(*) FROM dead_letter_decisions WHERE decision = 'replayed'"
                ).fetchone()
                assert row is not None
                return int(row[0])

            before = replayed()
            wait_for(lambda: replayed() > before, "some to be replayed")
            running.send_signal(signal.SIGINT)
            assert running.wait(20) == 130, log.read_text()
            assert "the rest is unchanged" in log.read_text()
            assert replayed() - before < 3_000
