"""The README's commands on a machine whose environment belongs to others."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.exclusive import exclusive
from tests.support.sandbox import ROOT
from tests.support.up import SIMULATED, Up

YYC3 = str(Path(sys.executable).with_name("yyc3"))
NOWHERE = "redis://127.0.0.1:9/0"
OTHERS = {
    **dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"),
    **dict.fromkeys(("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"), NOWHERE),
    "CELERY_RESULT_BACKEND": NOWHERE,
    "CELERY_CONFIG_MODULE": "celeryconfig",
    "CELERY_LOADER": "celeryconfig:Loader",
    "PGHOST": "10.255.255.1",
    "PGPORT": "1",
    "PGUSER": "nobody-here",
    "PGPASSWORD": "x",
    "PGSSLMODE": "require",
    "PGGSSENCMODE": "require",
    "PGCHANNELBINDING": "require",
    "PGSERVICE": "not-there",
    "PGOPTIONS": "-c statement_timeout=1",
    "PGDATA": "/nonexistent",
    "PGTZ": "Asia/Shanghai",
    "FLOWER_PORT": "tcp://10.0.0.5:5555",
    "FLOWER_BASIC_AUTH": "a:b",
    "FLOWER_UNAUTHENTICATED_API": "true",
    "KOMBU_LOG_DEBUG": "1",
    "PYTHONWARNINGS": "error",
    "PYTHONIOENCODING": "latin-1",
    "PYTHONOPTIMIZE": "1",
    "LC_ALL": "C",
    "LANG": "C",
}

PROGRAM = """
from pipeline import Client
with Client() as client:
    job = client.submit({"kind": "intent", "text": "我要退款"})
    print(client.result(job, 60).state)
"""


@pytest.fixture
def namesakes(tmp_path: Path) -> Path:
    """A project of somebody else, with folders and files that have the names of ours."""
    folder = tmp_path / "their project"
    for name in ("pipeline", "workers", "schemas", "simulator", "celery", "flower"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise SystemExit('this is somebody else')")
    for name in ("celeryconfig.py", "flowerconfig.py", "alembic.ini", "sitecustomize.py", "models.toml"):
        (folder / name).write_text("raise SystemExit('this is somebody else')")
    return folder


def environment(home: Path) -> dict[str, str]:
    ours = ("YYC3_", "AI_", "PYTEST_", "COV_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours) and not key.endswith("_URL")}
    return {**kept, **OTHERS, "HOME": str(home), "XDG_DATA_HOME": str(home)}


def as_unknown_account(command: list[str]) -> list[str]:
    """Run a command as an account that /etc/passwd does not know, where namespaces allow that."""
    other = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    possible = (
        shutil.which("unshare") and subprocess.run([*other, "true"], capture_output=True, check=False).returncode == 0
    )
    return [*other, *command] if possible else command


def test_the_demo_runs_in_an_environment_of_others(tmp_path: Path, namesakes: Path) -> None:
    home = tmp_path / '家 "里" 100% \\ {}'
    home.mkdir()
    with exclusive("ports"):
        done = subprocess.run(
            as_unknown_account([YYC3, "demo", "--speed", "20", "--json"]),
            env=environment(home) | {"YYC3_HOME": str(home / "yyc3")},
            cwd=namesakes,
            capture_output=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    counts = json.loads(done.stdout)
    assert (counts["calls"], counts["failed"], counts["cached"]) == (28, 0, 0)
    assert counts["flower_url"]
    assert b"does not answer" not in done.stderr


def test_make_demo_and_make_test_run_in_an_environment_of_others(tmp_path: Path) -> None:
    """`make test` with one module: all of them run in it already."""
    home = tmp_path / "家 里"
    home.mkdir()
    own = environment(home) | {"PYTEST_ADDOPTS": "tests/integration/store/test_tenants.py"}
    with exclusive("ports"):
        done = subprocess.run(["make", "demo"], env=own, cwd=ROOT, capture_output=True, timeout=150)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    done = subprocess.run(["make", "test"], env=own, cwd=ROOT, capture_output=True, timeout=150)
    assert done.returncode == 0, done.stdout.decode(errors="replace")


def test_a_client_in_the_process_of_another_program_uses_our_servers(tmp_path: Path) -> None:
    """A web application that sets CELERY_* and PG* for itself, and imports the client."""
    with Up(tmp_path / "home", *SIMULATED) as up:
        theirs = {name: value for name, value in OTHERS.items() if name not in {"PGSERVICE", "PYTHONWARNINGS"}}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**up.environment, **theirs},
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.stdout == "succeeded\n", done.stderr


def test_two_that_start_in_the_same_moment_have_ports_of_their_own(tmp_path: Path) -> None:
    homes = [tmp_path / "a" / "home", tmp_path / "b" / "home"]
    for home in homes:
        home.parent.mkdir()
    ups = [Up(home, *SIMULATED, "--json") for home in homes]
    with exclusive("ports"):
        running = [
            subprocess.Popen([YYC3, "up", *SIMULATED, "--json"], env=up.environment, stdout=subprocess.PIPE, text=True)
            for up in ups
        ]
        ready = [json.loads(process.stdout.readline()) for process in running if process.stdout is not None]
    try:
        first, second = ({one["url"] for one in info["endpoints"]} | {info["flower_url"]} for info in ready)
        assert len(first) == len(second) == 4
        assert not first & second
        for up in ups:
            assert "succeeded" in up.yyc3(
                "submit", "intent", "--text", "我要退款", "--wait", "--json", "--timeout", "60"
            )
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.communicate(timeout=60)


def refused(tmp_path: Path, *arguments: str, **changed: str) -> str:
    """Run a command that is refused; returns what it said."""
    own = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **changed}
    done = subprocess.run([YYC3, *arguments], env=own, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode in {1, 2, 3}, done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


@pytest.mark.parametrize("login", ["admin", "admin:", ":secret", " : "])
def test_a_login_of_flower_without_user_or_password_is_refused_at_the_start(tmp_path: Path, login: str) -> None:
    said = refused(tmp_path, "up", YYC3_FLOWER_BASIC_AUTH=login)
    assert "YYC3_FLOWER_BASIC_AUTH: has the form user:password" in said
    assert "secret" not in said


def test_a_file_of_settings_is_named_where_it_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("DATABASE_URL=sqlite:///db.sqlite3\n")  # of a Django project
    assert f"setting refused of {file}: DATABASE_URL: must begin with postgresql://" in refused(tmp_path, "queues")
    file.write_bytes("\ufeffYYC3_FLOWER_PORT=99999\r\n".encode())  # an editor of another system
    assert f"setting refused of {file}: YYC3_FLOWER_PORT: may be at most 65535" in refused(tmp_path, "queues")
    for encoding in ("gbk", "utf-16"):
        file.write_bytes("# 数据库\nYYC3_FLOWER_PORT=5556\n".encode(encoding))
        assert f"{file} is not encoded in UTF-8" in refused(tmp_path, "queues")
    file.unlink()
    file.mkdir()
    assert "no yyc3 up is running" in refused(tmp_path, "queues")


def test_an_account_without_a_home_is_told_what_to_set(tmp_path: Path) -> None:
    own = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        as_unknown_account([YYC3, "queues"]), env=own, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "set YYC3_HOME" in done.stderr or "no yyc3 up is running" in done.stderr


def test_models_with_endpoints_need_no_port_and_a_mark_at_the_start_is_nothing(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_bytes('\ufeff[models.m]\nkinds = ["chat"]\nendpoints = ["http://127.0.0.1:9"]\n'.encode())
    assert "no yyc3 up is running" in refused(tmp_path, "queues", YYC3_MODELS_FILE=str(file))
    file.write_text('[models.m]\nkinds = ["chat"]\n')
    own = {"DATABASE_URL": "postgresql://h/d", "REDIS_URL": NOWHERE, "YYC3_MODELS_FILE": str(file)}
    assert "models.m: give it endpoints, or the port of its vLLM on this machine" in refused(tmp_path, "queues", **own)
