"""What acceptance tests need beside real servers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.sandbox import ROOT


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where Node programs find the packages of tests/node; skipped at a desk without Node, failed in CI."""
    if "CI" not in os.environ and not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node is not here")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / "tests" / "node" / name, folder)
    done = subprocess.run(["npm", "ci", "--silent"], cwd=folder, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, f"npm ci ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return folder
