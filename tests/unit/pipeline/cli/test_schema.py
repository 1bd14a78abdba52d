"""`yyc3 schema` prints and writes what is published."""

import json
import subprocess
import sys
from pathlib import Path

from schemas.published import files, json_schema
from tests.support.sandbox import ROOT
from tests.support.submitting_page import PAGE


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "schema", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        timeout=60,
    )


def test_the_command_prints_and_writes_what_is_committed(tmp_path: Path) -> None:
    assert json.loads(command().stdout) == json_schema()
    assert command("--typescript").stdout == files()["yyc3.d.ts"]
    done = command("--out", str(tmp_path / "new" / "folder"))
    assert (done.returncode, done.stdout) == (0, "")
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "new/folder").iterdir()} == files()
    refused = command("--out", str(PAGE))
    assert refused.returncode == 2
    assert "cannot be written" in refused.stderr
    assert "Traceback" not in refused.stderr
