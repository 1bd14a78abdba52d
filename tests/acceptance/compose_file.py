"""The compose file, its services by group, and the values that Compose would put into it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tests.support.sandbox import ROOT

FOLDER = ROOT / "compose"
FILE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
WORKERS = {name: service for name, service in OURS.items() if service["command"][0] == "worker"}
ENGINES = {name: service for name, service in SERVICES.items() if name.startswith("vllm-")}
FILLED_IN = {"POSTGRES_PASSWORD": "p0stgres", "REDIS_PASSWORD": "r3dis", "YYC3_FLOWER_BASIC_AUTH": "operator:fl0wer"}
"""The values of .env that Compose requires."""

VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?P<form>:-|:\?)(?P<rest>[^}]*)\})")


def interpolated(text: str, environment: Mapping[str, str] = FILLED_IN) -> str:
    """Return what Compose makes of a text: `${NAME:-default}`, `${NAME:?message}`, and `$$` for a dollar."""

    def value(found: re.Match[str]) -> str:
        if found["name"] is None:
            return "$"
        if found["form"] == ":-":
            return environment.get(found["name"]) or found["rest"]
        return environment[found["name"]]

    result = VARIABLE.sub(value, text)
    assert "${" not in result, f"a form that this function does not support: {text}"
    return result


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a part of the file."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def seconds(duration: str) -> int:
    """Return the seconds of a duration such as `40s`."""
    found = re.fullmatch(r"(\d+)s", duration)
    assert found, duration
    return int(found[1])
