"""Files of `yyc3 calls analyze`: never over the input, never worse than what was there."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.sandbox import Sandbox

LINE = json.dumps({"call_id": "c", "turns": [{"speaker": "customer", "text": "我要退款"}]}, ensure_ascii=False)
FORMER = '{"former": "report"}\n'


@pytest.fixture
def report(tmp_path: Path) -> Path:
    file = tmp_path / "reports.jsonl"
    file.write_text(FORMER)
    file.chmod(0o600)
    return file


def calls(tmp_path: Path, text: str | bytes = LINE) -> Path:
    file = tmp_path / "calls.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_the_input_is_never_the_output(sandbox: Sandbox, tmp_path: Path) -> None:
    source = calls(tmp_path)
    done = sandbox.yyc3("calls", "analyze", str(source), "--out", str(source), check=2)
    assert "which is read; name another file" in done.stderr
    assert source.read_text() == LINE


@pytest.mark.parametrize(
    "content",
    [
        LINE.encode("utf-16"),
        "\n".join([LINE] * 3).encode("gb18030"),
        f"[{LINE}]".encode(),
        b"not\njson\n",
        b"",
        b"\n \n",
    ],
)
def test_a_wrong_input_leaves_the_former_report(sandbox: Sandbox, tmp_path: Path, report: Path, content: bytes) -> None:
    done = sandbox.yyc3("calls", "analyze", str(calls(tmp_path, content)), "--out", str(report), check=2)
    assert len(done.stderr.splitlines()) <= 3
    assert report.read_text() == FORMER


def test_a_service_that_is_away_leaves_the_former_report(sandbox: Sandbox, tmp_path: Path, report: Path) -> None:
    away = "postgresql://x:y@127.0.0.1:9/z"
    sandbox.yyc3("calls", "analyze", str(calls(tmp_path)), "--out", str(report), check=3, DATABASE_URL=away)
    assert report.read_text() == FORMER
    assert sorted(one.name for one in tmp_path.iterdir() if "unfinished" in one.name) == []


def test_reports_go_through_a_pipe_and_keep_the_mode_of_a_file(sandbox: Sandbox, tmp_path: Path, report: Path) -> None:
    source, pipe, read = calls(tmp_path, f"{LINE}\n{LINE}\n"), tmp_path / "pipe", []
    os.mkfifo(pipe)
    with sandbox.simulator(), sandbox.worker("bulk"):
        sandbox.yyc3("calls", "analyze", str(source), "--out", str(report))
        reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
        reader.start()
        sandbox.yyc3("calls", "analyze", str(source), "--out", str(pipe))
        reader.join(30)
    assert (report.stat().st_mode & 0o777, len(report.read_text().splitlines())) == (0o600, 2)
    assert [json.loads(line)["call_id"] for line in read[0].splitlines()] == ["c", "c"]
    assert pipe.is_fifo()


def test_a_file_that_may_not_grow_is_one_sentence(sandbox: Sandbox, tmp_path: Path, report: Path) -> None:
    source = calls(tmp_path, f"{LINE}\n" * 40)
    with sandbox.simulator("--speed", "50"), sandbox.worker("bulk"):
        command = f"ulimit -f 4; exec {sys.executable} -m pipeline.cli calls analyze {source} --out {report}"
        done = subprocess.run(
            ["bash", "-c", command], env=sandbox.environment, cwd=tmp_path, capture_output=True, text=True, timeout=90
        )
    assert done.returncode == 2, done.stderr
    assert "reports.jsonl cannot be written: File too large" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert report.read_text() == FORMER
