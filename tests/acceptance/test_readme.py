"""Every command of the README runs, as a new user types it, in order, in one home."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.exclusive import exclusive
from tests.support.sandbox import ROOT, Sandbox

READMES = ["README.md", "README.zh-CN.md"]
# `make test` runs this test; the environment below does what the export does.
ELSEWHERE = {"make test", 'export PATH="$PWD/.venv/bin:$PATH"'}


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


def commands(name: str) -> list[str]:
    return [line for block in blocks(name, "bash") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("new_user")
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("YYC3_", "AI_", "DATABASE", "REDIS"))
    }
    return {**kept, "HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}"}


@pytest.fixture(scope="module")
def up(environment: dict[str, str]) -> Iterator[None]:
    sandbox = Sandbox("", "", Path(environment["HOME"]))
    sandbox.environment = environment
    with ExitStack() as stack:
        with exclusive("ports"):
            started = stack.enter_context(sandbox.process("pipeline.cli", "up", "--simulate"))
            started.wait_until_logged("ready    try: ", "yyc3 up")
        yield
        assert started.terminate(60) == 0


def run(command: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euc", command], env=environment, cwd=folder, capture_output=True, text=True, timeout=150
    )


def test_both_readmes_have_the_same_commands_and_programs() -> None:
    assert commands(READMES[0]) == commands(READMES[1])
    assert blocks(READMES[0], "python") == blocks(READMES[1], "python")


def test_the_demo_runs_alone_and_prints_what_it_finds(environment: dict[str, str]) -> None:
    assert "make demo" in commands("README.md")
    with exclusive("ports"):
        done = run("make demo", environment, ROOT)
    assert done.returncode == 0, done.stderr
    assert "28 calls, 118 jobs, 118 succeeded, 0 failed" in done.stdout
    assert "simulated engines answered" in done.stdout


def test_make_lists_every_target_of_the_readme(environment: dict[str, str]) -> None:
    printed = run("make", environment, ROOT).stdout
    for target in ("demo", "up", "test", "check", "bench", "venv", "clean"):
        assert re.search(rf"^  make {target} +\S", printed, re.MULTILINE)


def test_every_other_command_of_the_readme_runs(up: None, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    ran = 0
    for command in commands("README.md"):
        if command in ELSEWHERE or command in {"make demo", "yyc3 up --simulate"}:
            continue
        done = run(command, environment, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout or done.stderr
        ran += 1
    assert ran >= 8
    assert len((tmp_path / "reports.jsonl").read_text().splitlines()) == 28


def test_the_python_program_of_the_readme_runs(up: None, environment: dict[str, str], tmp_path: Path) -> None:
    (program,) = blocks("README.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refund 0.")
    assert "['positive', 'negative']" in done.stdout
