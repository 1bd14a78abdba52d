"""The examples of docs/batches.md run as they stand, in their order, and its Chinese form has the same ones."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sandbox import ROOT, Sandbox

PAGE, CHINESE = ROOT / "docs" / "batches.md", ROOT / "docs" / "batches.zh-CN.md"


def blocks(page: Path, fence: str) -> list[str]:
    return re.findall(rf"^```{fence}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def running(module_sandbox: Sandbox) -> Iterator[Sandbox]:
    path = f"{Path(sys.executable).parent}:{module_sandbox.environment['PATH']}"
    module_sandbox.environment["PATH"] = path
    with (
        module_sandbox.simulator(),
        module_sandbox.worker("bulk"),
        module_sandbox.process("pipeline.cli", "recover"),
    ):
        yield module_sandbox


def test_the_examples_of_the_page_run_as_they_stand(running: Sandbox, tmp_path: Path) -> None:
    openai, ours, answer = blocks(PAGE, "json lines")
    (tmp_path / "requests.jsonl").write_text(openai + ours, encoding="utf-8")
    printed = []
    for script in blocks(PAGE, "bash"):
        done = subprocess.run(
            ["bash", "-euc", script], env=running.environment, cwd=tmp_path, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, f"{script}\n{done.stderr}"
        printed.append(done.stdout)
    assert "completed; 3 jobs, 3 succeeded, 0 failed" in printed[0]
    lines = [json.loads(line) for line in printed[2].splitlines()]
    assert {line["custom_id"] for line in lines} == {"call-1", "call-2", "call-3"}
    assert all(set(line) == set(json.loads(answer)) for line in lines)
    assert (tmp_path / "answers.jsonl").read_text("utf-8").count("\n") == 3
    assert (tmp_path / "table.csv").read_bytes().startswith(b"\xef\xbb\xbfline,custom_id,state")
    assert (tmp_path / "table.xlsx").read_bytes().startswith(b"PK")
    assert (tmp_path / "errors.jsonl").read_bytes() == b""


def test_the_python_of_the_page_runs(running: Sandbox, tmp_path: Path) -> None:
    (program,) = blocks(PAGE, "python")
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=running.environment | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("c0 negative\nc1 negative\nc2 negative\n")


def test_the_chinese_page_has_the_same_examples_tables_and_sections() -> None:
    english, chinese = (page.read_text(encoding="utf-8") for page in (PAGE, CHINESE))
    for fence in ("json lines", "bash", "python"):
        assert blocks(PAGE, fence) == blocks(CHINESE, fence)
    for form in (r"^#+ ", r"^\|"):
        assert len(re.findall(form, english, re.MULTILINE)) == len(re.findall(form, chinese, re.MULTILINE))
    options = r"`(--[a-z-]+)"
    assert re.findall(options, english) == re.findall(options, chinese)


def test_every_option_of_submit_is_on_the_page(running: Sandbox) -> None:
    shown = running.yyc3("batches", "submit", "--help", COLUMNS="200").stdout
    options = set(re.findall(r"(--[a-z][a-z-]+)", shown)) - {"--help", "--cache", "--not-before"}
    assert options - set(re.findall(r"(--[a-z-]+)", PAGE.read_text("utf-8"))) <= {"--json", "--wait"}


def test_what_cannot_be_read_is_one_sentence(running: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for given, reason in (
        ([str(tmp_path)], "is a folder"),
        ([str(tmp_path / "none")], "cannot be read: No such file"),
        ([str(tmp_path / "empty")], "has no lines"),
        (["-", "--encoding", "latin-1"], "encoding: must be one of utf-8"),
        (["-", "--sample", "200%"], "--sample: 200% is not a share"),
        (["-", "--window", "5m"], "--window: 5m is not between 1h and 30d"),
        (["-", "--out", "a.jsonl", "--errors", "./a.jsonl"], "--errors: names the same file"),
        (["-", "--out", "-", "--json"], "--json: prints to stdout"),
        (["-", "--key", ""], "idempotency_key: must be text of 1 to 200"),
        (["-", "--tenant", "a b"], "tenant: must have 1 to 64 letters"),
        (["-", "--window", "soon"], "--window: soon is not like 90m"),
        (["-", "--out", "a.jsonl", "--errors", "a.jsonl"], "--errors: names the same file"),
    ):
        done = running.yyc3("batches", "submit", *given, check=2)
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
    for command in ("show", "output"):
        done = running.yyc3("batches", command, "999", check=None)
        assert done.returncode == 1
        assert "there is no batch 999" in done.stderr
    done = running.yyc3("batches", "list", "--tenant", "nobody")
    assert done.stdout == "no batches\n"
