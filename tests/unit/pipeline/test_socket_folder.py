"""The folder of the unix sockets: private, with a short path, the same for the same home."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.local.sockets import make_socket_folder


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="yyc3-") as folder:  # pytest's own have long paths
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


def made(home: Path) -> Path:
    folder = make_socket_folder(home)
    assert folder is not None
    return folder


def test_it_is_private_and_stays_the_same(runtime: Path, tmp_path: Path) -> None:
    first = made(tmp_path / "home")
    assert first.parent == runtime
    assert first.stat().st_mode & 0o777 == 0o700
    first.chmod(0o755)
    assert made(tmp_path / "home") == first
    assert first.stat().st_mode & 0o777 == 0o700
    assert made(tmp_path / "other") != first


@pytest.mark.parametrize("wrong", ["too long", "not absolute", "not there", "open to all", "a file"])
def test_another_place_is_taken_where_the_runtime_folder_does_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    folder = tmp_path / ("x" * 90 if wrong == "too long" else "run")
    if wrong == "a file":
        folder.touch()
    elif wrong != "not there":
        folder.mkdir(mode=0o700)
        folder.chmod(0o777 if wrong == "open to all" else 0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "run" if wrong == "not absolute" else str(folder))
    found = made(tmp_path / "home")
    assert found.parent == Path(tempfile.gettempdir())
    assert len(os.fsencode(found / ".s.PGSQL.65535")) <= 107
    found.rmdir()


@pytest.mark.parametrize("what", ["link", "dangling link", "file"])
def test_a_name_that_is_taken_by_something_else_is_left_to_it(runtime: Path, tmp_path: Path, what: str) -> None:
    """As another account could have left it."""
    expected = made(tmp_path / "home")
    expected.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o777)
    if what == "file":
        expected.touch()
    else:
        expected.symlink_to(elsewhere if what == "link" else tmp_path / "nothing")
    found = made(tmp_path / "home")
    assert made(tmp_path / "home") == found
    assert found.parent == runtime
    assert found != expected
    assert not found.is_symlink()
    assert list(elsewhere.iterdir()) == []
