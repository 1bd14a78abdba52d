"""Postgres restarted, full, promoted, its clock set; Redis away; a rolling deploy; the former release on the new tables."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from pipeline import Client
from schemas.errors import StoreUnavailable
from schemas.results import JobState
from tests.support.audit import audit
from tests.support.sandbox import ROOT, Sandbox, Simulator, wait_for
from tests.support.servers import Postgres, Valkey

MAX_NUM_SEQS = 32
SLOW = ("--max-num-seqs", str(MAX_NUM_SEQS))
LEASE_SECONDS = 4.0
_FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


def texts(count: int) -> list[dict[str, object]]:
    return [{"kind": "sentiment", "text": f"第{i}位客户说：太差了", "cache": False} for i in range(count)]


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Postgres]:
    with Postgres(tmp_path / "own-postgres") as own:
        yield own


def moved(sandbox: Sandbox, database_url: str) -> Sandbox:
    """The same place with another database."""
    own = Sandbox(database_url, sandbox.redis_url, sandbox.home)
    own.environment["YYC3_LEASE_SECONDS"] = str(LEASE_SECONDS)
    return own


@contextmanager
def under_load(sandbox: Sandbox, jobs: int = 600) -> Iterator[tuple[Client, Simulator]]:
    """A bulk worker in the middle of a batch, an interactive one beside it, and recovery."""
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator(*SLOW, speed=1))
        for lane in ("bulk", "interactive"):
            stack.enter_context(sandbox.worker(lane))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        client.submit_many(texts(jobs))
        wait_for(lambda: settled(sandbox) > 20, "some outcomes")
        yield client, simulator


def settled(sandbox: Sandbox) -> int:
    try:
        return int(sandbox.query("SELECT count(*) FROM outcomes")[0][0])
    except psycopg.Error:
        return 0


def finish(sandbox: Sandbox, jobs: int) -> None:
    """Each job ends in one success."""
    wait_for(lambda: settled(sandbox) == jobs, f"{jobs} outcomes", 90)
    wait_for(lambda: sandbox.query("SELECT count(*) FROM chunks WHERE state <> 'done'") == [(0,)], "chunks to be done")
    found = audit(sandbox.database_url)
    assert (found.jobs, found.clean) == (jobs, True), found
    assert sandbox.query("SELECT DISTINCT state FROM outcomes") == [("succeeded",)]


def test_a_postgres_that_is_away_for_longer_than_a_lease_costs_no_run_and_repeats_nothing(
    sandbox: Sandbox, postgres: Postgres
) -> None:
    own = moved(sandbox, postgres.url)
    with under_load(own) as (client, simulator):
        postgres.end()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            client.submit(texts(1)[0])
        assert time.monotonic() - began < 3, "about a second, on a machine that is doing other things"
        with pytest.raises(StoreUnavailable):
            client.submit_many(texts(2))
        time.sleep(LEASE_SECONDS + 2)  # what is waited for is the end of every lease
        postgres.start()
        wait_for(lambda: accepts(client), "submits to be taken again", 5)
        finish(own, 601)
        assert own.query("SELECT count(*) FROM chunks WHERE last_code = 'worker_lost'") == [(0,)]
        assert simulator.state()["finished"] == 601


def accepts(client: Client) -> bool:
    try:
        client.submit(texts(1)[0])
    except StoreUnavailable:
        return False
    return True


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_refuses_new_jobs_and_keeps_what_was_computed(sandbox: Sandbox) -> None:
    folder = Path(tempfile.mkdtemp(prefix="yyc3-small-"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", folder], check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount")
    try:
        with Postgres(folder / "home") as postgres:
            own = moved(sandbox, postgres.url)
            with under_load(own) as (client, simulator):
                ballast = folder / "ballast"
                with ballast.open("wb") as stream:
                    try:
                        while True:
                            stream.write(b"x" * 65_536)
                            stream.flush()
                    except OSError:
                        pass
                job = {"kind": "sentiment", "text": "x" * 8_000, "cache": False}
                refused = None
                for number in range(3_000):
                    try:
                        client.submit_many([{**job, "text": f"{number} {job['text']}"}])
                    except StoreUnavailable as error:
                        refused = error
                        break
                assert refused is not None, "the disk was never full"
                accepted = int(own.query("SELECT count(*) FROM jobs")[0][0])
                ballast.unlink()
                wait_for(lambda: accepts(client), "submits to be taken again", 30)
                finish(own, accepted + 1)
                assert simulator.state()["finished"] <= accepted + 1 + 2 * MAX_NUM_SEQS
    finally:
        subprocess.run(["umount", "-l", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_promoted_standby_takes_over_and_nothing_that_was_accepted_is_lost(
    sandbox: Sandbox, postgres: Postgres, tmp_path: Path
) -> None:
    with postgres.standby(tmp_path / "standby") as standby:
        addresses = [url.rsplit("@", 1)[1].split("/")[0] for url in (postgres.url, standby.url)]
        user = postgres.url.rsplit("@", 1)[0]
        own = moved(sandbox, f"{user}@{','.join(addresses)}/postgres?target_session_attrs=read-write")
        with under_load(own) as (client, simulator):
            postgres.end(how=signal.SIGKILL)
            standby.query("ALTER SYSTEM SET synchronous_standby_names = ''")
            standby.query("SELECT pg_promote()")
            wait_for(lambda: accepts(client), "submits to be taken again", 30)
            finish(own, 601)
            assert simulator.state()["finished"] <= 601 + 2 * MAX_NUM_SEQS


def test_a_clock_that_jumps_an_hour_either_way_costs_no_living_worker_its_run(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if _FAKETIME is None:
        assert not os.environ.get("CI"), "CI installs faketime"
        pytest.skip("faketime is not installed")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    with monkeypatch.context() as patched:
        patched.setenv("LD_PRELOAD", str(_FAKETIME))
        patched.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
        patched.setenv("FAKETIME_NO_CACHE", "1")
        patched.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        postgres = Postgres(tmp_path / "own-postgres")
    with postgres:
        own = moved(sandbox, postgres.url)
        with under_load(own, 5_000) as (_, simulator):
            for jump in ("+3600", "-3600"):
                before = settled(own)
                clock.write_text(jump)
                hour = own.query("SELECT extract(epoch FROM now())::float8")[0][0] - time.time()
                assert abs(hour - float(jump)) < 60, "the database's clock jumped"
                wait_for(lambda before=before: settled(own) > before + 40, "outcomes after the jump", 60)  # type: ignore[misc]
                time.sleep(LEASE_SECONDS)  # two looks of recovery
            finish(own, 5_000)
            assert own.query("SELECT count(*) FROM chunks WHERE last_code = 'worker_lost'") == [(0,)]
            assert simulator.state()["finished"] == 5_000


def test_a_redis_that_is_away_delays_no_submit_and_no_result_for_long(sandbox: Sandbox, tmp_path: Path) -> None:
    with Valkey(tmp_path / "own-valkey") as valkey:
        sandbox.redis_url = sandbox.environment["REDIS_URL"] = valkey.url
        with under_load(sandbox, 200) as (client, _):
            valkey.end()
            began = time.monotonic()
            accepted = [client.submit(texts(1)[0]) for _ in range(5)]
            assert time.monotonic() - began < 10, "a closed port is noticed at once"
            time.sleep(8)  # an outage
            valkey.start()
            assert {client.result(job_id, 60).state for job_id in accepted} == {JobState.SUCCEEDED}
            finish(sandbox, 205)


def test_a_rolling_deploy_under_load_loses_nothing_and_repeats_nothing(sandbox: Sandbox) -> None:
    sandbox.environment["YYC3_LEASE_SECONDS"] = str(LEASE_SECONDS)
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator(*SLOW, speed=1))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        workers = [stack.enter_context(sandbox.worker("bulk")) for _ in range(2)]
        client.submit_many(texts(1_200))
        for number in range(4):
            wait_for(lambda number=number: settled(sandbox) > 100 + 150 * number, "some outcomes")  # type: ignore[misc]
            fresh = stack.enter_context(sandbox.worker("bulk"))
            assert workers.pop(0).terminate() == 0
            workers.append(fresh)
        finish(sandbox, 1_200)
        assert simulator.state()["finished"] == 1_200, "each was asked once"
        assert sandbox.query("SELECT max(crashes), max(rounds) FROM chunks") == [(0, 0)]
        assert sandbox.query("SELECT count(*) FROM failed_attempts") == [(0,)]


def test_the_former_release_works_on_the_new_tables(sandbox: Sandbox, tmp_path: Path) -> None:
    """In the middle of a deploy old and new processes share one database."""
    former = (Path(__file__).parent / "former_release").read_text().split()[0]
    archive = subprocess.run(["git", "archive", former], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip("this checkout does not hold the former release")
    old = tmp_path / "former"
    old.mkdir()
    subprocess.run(["tar", "-x", "-C", old], input=archive.stdout, check=True)
    sandbox.environment["YYC3_LEASE_SECONDS"] = str(LEASE_SECONDS)
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator(*SLOW, speed=2))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        there = {**sandbox.environment, "PYTHONPATH": str(old)}
        # An old worker, an old recovery, an old producer; then a new worker takes over from the old one.
        stack.enter_context(sandbox.process("pipeline.cli", "recover", cwd=old))
        with sandbox.worker("bulk", cwd=old) as worker:
            client.submit_many(texts(300))
            done = subprocess.run(
                [sys.executable, "-m", "pipeline.cli", "submit", "sentiment", "--text", "太差了", "--json"],
                env=there,
                cwd=old,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            wait_for(lambda: settled(sandbox) > 100, "outcomes of the old worker")
            stack.enter_context(sandbox.worker("bulk"))
            assert worker.terminate() == 0
        stack.enter_context(sandbox.worker("interactive", cwd=old))
        finish(sandbox, 301)
