"""What other programs' variables would do here: libraries read them by themselves, so they are taken out.

The settings of this program are YYC3_*, AI_*, DATABASE_URL, REDIS_URL and BROKER_URL; nothing else steers it. Called at the
start of every command and of every process of ours, never in the process of a caller that imports the client.
"""

import os
from collections.abc import MutableMapping

_PREFIXES = (
    "CELERY_",  # Celery: CELERY_BROKER_URL outranks the URL of the program
    "KOMBU_",  # prints messages
    "FLOWER_",  # every option of Flower; a cluster sets FLOWER_PORT=tcp://... for a service of that name
    "PG",  # libpq: servers, passwords and modes for whatever an URL leaves out
)
_NAMES = {
    "C_FAKEFORK",
    "C_FORCE_ROOT",
    # Python, of the processes that are started: texts and logs are UTF-8, a warning is no error.
    "PYTHONASYNCIODEBUG",
    "PYTHONDEVMODE",
    "PYTHONINSPECT",
    "PYTHONIOENCODING",
    "PYTHONOPTIMIZE",
    "PYTHONSTARTUP",
    "PYTHONWARNINGS",
}
# Engines are at loopback or named in models.toml, with their proxy; no other way leads out of this program.
_PROXIES = {f"{scheme}_proxy" for scheme in ("http", "https", "ftp", "all", "no")}


def take_out_others(environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """Remove the variables of other programs; returns their names."""
    found = [name for name in environment if _is_others(name)]
    for name in found:
        del environment[name]
    return found


def _is_others(name: str) -> bool:
    return name.startswith(_PREFIXES) or name in _NAMES or name.lower() in _PROXIES
