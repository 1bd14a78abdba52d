"""Postgres restarted, full, promoted, its clock set; Redis away; a rolling deploy; the former release on these tables."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import Client
from schemas.errors import StoreUnavailable
from schemas.results import JobState
from tests.support.faulty_proxy import Gate
from tests.support.load import gated, sentiments, settled, wait_until_done
from tests.support.sandbox import ROOT, Sandbox, Simulator, wait_for
from tests.support.servers import Postgres, Valkey

MAX_NUM_SEQS = 32
SLOW = ("--max-num-seqs", str(MAX_NUM_SEQS))
LEASE_SECONDS = 4.0
_FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Postgres]:
    with Postgres(tmp_path / "own-postgres") as own:
        yield own


def on_database(sandbox: Sandbox, database_url: str) -> Sandbox:
    """Return a sandbox with the same Redis and home, and another database."""
    own = Sandbox(database_url, sandbox.redis_url, sandbox.home)
    own.environment["YYC3_LEASE_SECONDS"] = str(LEASE_SECONDS)
    return own


@dataclass
class Load:
    """A client, a bulk worker with requests in flight, and the gate that holds them."""

    client: Client
    simulator: Simulator
    gate: Gate


@contextmanager
def under_load(sandbox: Sandbox, jobs: int = 600) -> Iterator[Load]:
    """Run a bulk worker in the middle of a batch, an interactive one beside it, and recovery."""
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator(*SLOW, speed=1))
        gate = stack.enter_context(gated(sandbox, simulator, 30))
        for lane in ("bulk", "interactive"):
            stack.enter_context(sandbox.worker(lane))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        client.submit_many(sentiments(jobs))
        wait_for(lambda: settled(sandbox) > 20 and gate.held_rows, "some outcomes, and requests in flight")
        yield Load(client, simulator, gate)


def accepts(client: Client) -> bool:
    """Submit one job more; the key makes it one job however often this is called."""
    try:
        client.submit(sentiments(1)[0] | {"idempotency_key": "one more"})
    except StoreUnavailable:
        return False
    return True


def seconds_to_refuse(client: Client) -> float:
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        client.submit(sentiments(1)[0])
    return time.monotonic() - began


def test_a_postgres_outage_beyond_the_lease_costs_no_run_and_repeats_nothing(
    sandbox: Sandbox, postgres: Postgres
) -> None:
    own = on_database(sandbox, postgres.url)
    with under_load(own) as load:
        postgres.end()
        leases_end = time.monotonic() + LEASE_SECONDS
        load.gate.open()
        # The fastest of three: a machine that is busy with other things only adds to it.
        assert min(seconds_to_refuse(load.client) for _ in range(3)) < 3, "a submit is refused in about a second"
        with pytest.raises(StoreUnavailable):
            load.client.submit_many(sentiments(2))
        wait_for(lambda: time.monotonic() > leases_end + 2, "every lease to end")
        postgres.start()
        wait_for(lambda: accepts(load.client), "submits to be accepted again")
        wait_until_done(own, 601)
        assert own.query("SELECT count(*) FROM chunks WHERE last_code = 'worker_lost'") == [(0,)]
        assert load.simulator.state()["finished"] == 601


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(b"x" * 65_536)


@contextmanager
def small_disk() -> Iterator[Path]:
    """Mount a file system of 192 MB."""
    folder = Path(tempfile.mkdtemp(prefix="yyc3-small-"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", folder], check=False).returncode != 0:
        pytest.skip("this machine allows no mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_refuses_new_jobs_and_keeps_computed_results(sandbox: Sandbox) -> None:
    with small_disk() as disk, Postgres(disk / "home") as postgres:
        own = on_database(sandbox, postgres.url)
        with under_load(own) as load:
            ballast = disk / "ballast"
            fill(ballast)
            load.gate.open()
            refused = False
            for number in range(3_000):
                try:
                    load.client.submit_many([{"kind": "sentiment", "text": f"{number} {'x' * 8_000}", "cache": False}])
                except StoreUnavailable:
                    refused = True
                    break
            assert refused, "the disk was never full"
            accepted = int(own.query("SELECT count(*) FROM jobs")[0][0])
            ballast.unlink()
            wait_for(lambda: accepts(load.client), "submits to be accepted again")
            wait_until_done(own, accepted + 1)
            assert load.simulator.state()["finished"] <= accepted + 1 + 2 * MAX_NUM_SEQS


def test_a_promoted_standby_takes_over_and_no_accepted_job_is_lost(
    sandbox: Sandbox, postgres: Postgres, tmp_path: Path
) -> None:
    with postgres.standby(tmp_path / "standby") as standby:
        addresses = [url.rsplit("@", 1)[1].split("/")[0] for url in (postgres.url, standby.url)]
        user = postgres.url.rsplit("@", 1)[0]
        own = on_database(sandbox, f"{user}@{','.join(addresses)}/postgres?target_session_attrs=read-write")
        with under_load(own) as load:
            postgres.end(how=signal.SIGKILL)
            load.gate.open()
            standby.administer("ALTER SYSTEM SET synchronous_standby_names = ''")
            standby.administer("SELECT pg_promote()")
            wait_for(lambda: accepts(load.client), "submits to be accepted again")
            wait_until_done(own, 601)
            assert load.simulator.state()["finished"] <= 601 + 2 * MAX_NUM_SEQS


@contextmanager
def postgres_with_a_clock(folder: Path, clock: Path) -> Iterator[Postgres]:
    """Run a Postgres whose clock has the offset of a file, such as `+3600`."""
    if _FAKETIME is None:
        assert not os.environ.get("CI"), "CI installs faketime"
        pytest.skip("faketime is not installed")
    clock.write_text("+0")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LD_PRELOAD", str(_FAKETIME))
        patched.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
        patched.setenv("FAKETIME_NO_CACHE", "1")
        patched.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        postgres = Postgres(folder)
    with postgres:
        yield postgres


def test_a_clock_that_jumps_an_hour_costs_no_living_worker_its_run(sandbox: Sandbox, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    with postgres_with_a_clock(tmp_path / "own-postgres", clock) as postgres:
        own = on_database(sandbox, postgres.url)
        with under_load(own) as load:
            for jump in ("+3600", "-3600"):
                before = settled(own)
                clock.write_text(jump)
                offset = own.query("SELECT extract(epoch FROM now())::float8")[0][0] - time.time()
                assert abs(offset - float(jump)) < 60, "the database's clock jumped"
                load.gate.allow(100)
                wait_for(lambda before=before: settled(own) > before + 40, "outcomes after the jump")  # type: ignore[misc]
                looked = time.monotonic() + LEASE_SECONDS
                wait_for(lambda looked=looked: time.monotonic() > looked, "recovery to look twice at the held runs")  # type: ignore[misc]
                assert load.gate.held_rows, "the worker has requests in flight"
            load.gate.open()
            wait_until_done(own, 600)
            assert own.query("SELECT count(*) FROM chunks WHERE last_code = 'worker_lost'") == [(0,)]
            assert load.simulator.state()["finished"] == 600


def test_a_redis_outage_delays_no_submit_and_no_result_for_long(sandbox: Sandbox, tmp_path: Path) -> None:
    with Valkey(tmp_path / "own-valkey") as valkey:
        sandbox.redis_url = sandbox.environment["REDIS_URL"] = valkey.url
        with under_load(sandbox, 200) as load:
            valkey.end()
            load.gate.open()
            began = time.monotonic()
            accepted = [load.client.submit(job) for job in sentiments(5)]
            assert time.monotonic() - began < 10, "a closed port is noticed at once"
            outage_ends = time.monotonic() + 8
            wait_for(lambda: time.monotonic() > outage_ends, "the end of the outage")
            valkey.start()
            assert {load.client.result(job_id, 60).state for job_id in accepted} == {JobState.SUCCEEDED}
            wait_until_done(sandbox, 205)


def test_a_rolling_deploy_under_load_loses_nothing_and_repeats_nothing(sandbox: Sandbox) -> None:
    sandbox.environment["YYC3_LEASE_SECONDS"] = str(LEASE_SECONDS)
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator(*SLOW, speed=1))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        workers = [stack.enter_context(sandbox.worker("bulk")) for _ in range(2)]
        client.submit_many(sentiments(1_200))
        for number in range(4):
            wait_for(lambda number=number: settled(sandbox) > 100 + 150 * number, "some outcomes")  # type: ignore[misc]
            fresh = stack.enter_context(sandbox.worker("bulk"))
            assert workers.pop(0).terminate() == 0
            workers.append(fresh)
        wait_until_done(sandbox, 1_200)
        assert simulator.state()["finished"] == 1_200, "each row was sent once"
        assert sandbox.query("SELECT max(crashes), max(rounds) FROM chunks") == [(0, 0)]
        assert sandbox.query("SELECT count(*) FROM failed_attempts") == [(0,)]


@pytest.fixture
def former_release(tmp_path: Path) -> Path:
    """A checkout of the commit that the file former_release names."""
    commit = (Path(__file__).parent / "former_release").read_text().split()[0]
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip("this checkout does not hold the former release")
    folder = tmp_path / "former"
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


def test_the_former_release_works_on_the_new_tables(sandbox: Sandbox, former_release: Path) -> None:
    """In the middle of a deploy the processes of two releases share one database."""
    sandbox.environment["YYC3_LEASE_SECONDS"] = str(LEASE_SECONDS)
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator(*SLOW, speed=2))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        # A former worker, recovery and producer; then a new worker takes over from the former one.
        stack.enter_context(sandbox.process("pipeline.cli", "recover", cwd=former_release))
        with sandbox.worker("bulk", cwd=former_release) as worker:
            client.submit_many(sentiments(300))
            done = subprocess.run(
                [sys.executable, "-m", "pipeline.cli", "submit", "sentiment", "--text", "太差了", "--json"],
                env={**sandbox.environment, "PYTHONPATH": str(former_release)},
                cwd=former_release,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            wait_for(lambda: settled(sandbox) > 100, "outcomes of the former worker")
            stack.enter_context(sandbox.worker("bulk"))
            assert worker.terminate() == 0
        stack.enter_context(sandbox.worker("interactive", cwd=former_release))
        wait_until_done(sandbox, 301)
