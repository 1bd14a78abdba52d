"""What the compose file, its models file, its .env template and the Dockerfile promise.

No container engine is used, so these tests do not show that the images can be pulled or built.
"""

import importlib.metadata
import json
import re
import tomllib
from fnmatch import fnmatch
from typing import Any
from urllib.parse import urlsplit

import pytest
from jsonschema import Draft202012Validator

from pipeline.models import ModelEntry, load_models
from pipeline.settings import Settings, variables
from schemas.doorbells import Lane
from tests.acceptance.compose_file import (
    ENGINES,
    FILE,
    FILLED_IN,
    FOLDER,
    OURS,
    SERVICES,
    VARIABLE,
    WORKERS,
    interpolated,
    seconds,
    texts,
)
from tests.support.sandbox import ROOT

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


def test_the_compose_file_has_only_the_keys_that_we_use() -> None:
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


def test_every_dependency_can_be_satisfied() -> None:
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
        for found in VARIABLE.finditer(text)
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
    matches = [found for line in lines if (found := re.match(r"#?([A-Z][A-Z0-9_]+)=(.*)$", line))]
    template = {found[1]: found[2] for found in matches}
    used = {found["name"] for text in texts(FILE) for found in VARIABLE.finditer(text) if found["name"]}
    passed_on = {name for service in OURS.values() for name, value in service["environment"].items() if value is None}
    assert set(template) == used | passed_on
    assert {name for name, value in template.items() if not value} == {*FILLED_IN, *passed_on}
    assert ".env" in (FOLDER / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_the_defaults_of_the_env_template_are_those_of_the_compose_file() -> None:
    template = (FOLDER / ".env.template").read_text(encoding="utf-8")
    for text in texts(SERVICES):
        for found in VARIABLE.finditer(text):
            if found["form"] == ":-" and found["name"] != "YYC3_COMPOSE_MODELS":
                assert f"#{found['name']}={found['rest']}\n" in template


def test_no_container_runs_as_root_or_has_a_writable_root_needlessly() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE) == ["10001"]
    for name, service in SERVICES.items():
        if name in OURS:
            assert "user" not in service, f"{name}: the image has a user"
            assert service["init"], f"{name}: as process 1 it would ignore SIGTERM"
        else:
            assert service["user"] not in ("root", "0"), name
        assert service.get("read_only", False) is (name not in ENGINES), name


def test_the_compose_models_differ_from_the_default_in_addresses_only() -> None:
    own = {entry.name: entry for entry in load_models(FOLDER / "models.toml")}
    default = {entry.name: entry for entry in load_models()}
    assert {name: entry.model_copy(update={"endpoints": ()}) for name, entry in own.items()} == default
    addresses = [urlsplit(endpoint) for entry in own.values() for endpoint in entry.endpoints]
    assert {address.hostname for address in addresses} == set(ENGINES)


@pytest.mark.parametrize("entry", list(load_models(FOLDER / "models.toml")), ids=lambda entry: entry.name)
def test_the_options_of_each_engine_agree_with_the_models_file(entry: ModelEntry) -> None:
    address = urlsplit(entry.endpoints[0])
    assert address.hostname is not None
    engine = SERVICES[address.hostname]
    folder, *options = engine["command"]
    given = dict(option.removeprefix("--").partition("=")[::2] for option in options)
    assert given["served-model-name"] == entry.name
    assert (int(given["port"]), address.port) == (entry.port, entry.port)
    assert (int(given["max-num-seqs"]), int(given["max-model-len"])) == (entry.max_num_seqs, entry.max_model_len)
    assert given["scheduling-policy"] == "priority"
    assert int(given["shutdown-timeout"]) < seconds(engine["stop_grace_period"])
    assert given["trust-remote-code"] == ""
    overrides = json.loads(given["hf-overrides"]) if "hf-overrides" in given else None
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


def test_all_services_have_one_list_of_settings_and_it_is_that_of_the_program() -> None:
    # Not for containers: a folder of `yyc3 up`, the endpoint of a single model, a port that compose publishes.
    elsewhere = {"YYC3_HOME", "AI_BASE_URL", "AI_MODEL", "YYC3_FLOWER_PORT", "YYC3_FLOWER_BASIC_AUTH"}
    for name, service in OURS.items():
        own = set(service["environment"]) - {"YYC3_FLOWER_BASIC_AUTH"}
        assert own == set(variables()) - elsewhere, name


def test_every_process_of_ours_has_a_health_check() -> None:
    assert {name for name, service in OURS.items() if "healthcheck" not in service} == {"migrate"}


def test_workers_and_recovery_have_the_same_lease_and_its_default_is_ours() -> None:
    both = {name: SERVICES[name]["environment"] for name in [*WORKERS, "recover"]}
    given = {name: environment.get("YYC3_LEASE_SECONDS", "") for name, environment in both.items()}
    default = Settings.model_fields["lease_seconds"].default
    assert {name: interpolated(value) for name, value in given.items()} == dict.fromkeys(both, f"{default:g}")
    changed = {**FILLED_IN, "YYC3_LEASE_SECONDS": "45"}
    assert {interpolated(value, changed) for value in given.values()} == {"45"}


def test_the_dockerfile_uses_hashed_packages_and_files_of_its_context() -> None:
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


def test_the_image_has_what_kombu_needs_for_redis() -> None:
    # An extra that nothing requires: without it the packages install cleanly, and no worker can connect to its broker.
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    needed = [line for line in importlib.metadata.requires("kombu") or () if line.endswith('extra == "redis"')]
    names = {found[0] for line in needed if (found := re.match(r"[\w.-]+", line))}
    assert names
    assert names <= set(re.findall(r"^([\w.-]+)==", lock, re.MULTILINE))
