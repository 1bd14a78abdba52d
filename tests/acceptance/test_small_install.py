"""The package alone is what a program needs that submits jobs: few packages, little space, no servers."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

from tests.support.sandbox import ROOT
from tests.support.up import SIMULATED, Up

MOST_PACKAGES = 45
MOST_BYTES = 90_000_000
PROGRAM = """
from pipeline import Client
with Client() as client:
    job = client.submit({"kind": "intent", "text": "我要退款"})
    print(client.result(job, 60).state)
"""


def locked(folder: Path) -> Path:
    """Write the versions of the lock file as constraints, without hashes: a wheel of ours has none there."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    file = folder / "constraints.txt"
    file.write_text("\n".join(found[0] for line in lines if (found := re.match(r"[a-z0-9_.-]+==[^ ;\\]+", line))))
    return file


def test_the_wheel_alone_submits_a_job_to_a_running_up(tmp_path: Path) -> None:
    wheels, venv = tmp_path / "wheels", tmp_path / "venv"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    building = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(ROOT)]
    subprocess.run(building, check=True, timeout=120, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60)
    (wheel,) = wheels.iterdir()
    python = venv / "bin" / "python"
    installing = [*pip, "--python", str(python), "install", "-q", "-c", str(locked(tmp_path)), str(wheel)]
    subprocess.run(installing, check=True, timeout=240, capture_output=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    assert len(list(packages.glob("*.dist-info"))) <= MOST_PACKAGES
    size = sum(
        file.stat().st_size for file in packages.rglob("*") if "__pycache__" not in file.parts and file.is_file()
    )
    assert size <= MOST_BYTES, f"{size:,}"
    with Up(tmp_path / "home", *SIMULATED) as up:
        own = {**up.environment, "PYTHONPATH": ""}

        def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
            return subprocess.run(command, env=own, cwd=tmp_path, capture_output=True, text=True, timeout=90)

        done = run(python, "-c", PROGRAM)
        assert done.stdout == "succeeded\n", done.stderr
        yyc3 = venv / "bin" / "yyc3"
        assert run(yyc3, "--version").stdout == f"yyc3 {importlib.metadata.version('yyc3-ai-call')}\n"
        assert run(yyc3, "submit", "intent", "--text", "我要退款", "--wait", "--timeout", "60").returncode == 0
        assert run(yyc3, "jobs", "list").returncode == 0
        assert "pip install 'yyc3-ai-call[worker]'" in run(yyc3, "info").stdout
        for command, extra in (
            (("health",), "worker"),
            (("worker", "--lane", "bulk"), "worker"),
            (("flower",), "local"),
        ):
            refused = run(yyc3, *command)
            assert refused.returncode == 2, refused.stderr
            assert f"pip install 'yyc3-ai-call[{extra}]'" in refused.stderr
