"""Outputs: whole or not at all, never over an input, through whatever is no regular file."""

import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.files import OutputFile, replace_file
from schemas.errors import UnwritableFile


def written(path: Path, *lines: str) -> None:
    with OutputFile(path) as out:
        for line in lines:
            out.write(line + "\n")


def test_a_new_file_has_the_usual_mode_and_nothing_else_stays_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "报告.jsonl"
    written(file, "一", "two")
    assert file.read_text("utf-8") == "一\ntwo\n"
    assert file.stat().st_mode & 0o777 == 0o666 & ~(os.umask(mask := os.umask(0)) or mask)
    assert list(tmp_path.iterdir()) == [file]


def test_a_former_file_keeps_its_mode_and_links_lead_where_they_led(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "file", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    written(link, "new")
    assert link.is_symlink()
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new\n", 0o640)


def test_a_link_to_nothing_makes_its_target(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "made")
    written(tmp_path / "link", "x")
    assert (tmp_path / "made").read_text() == "x\n"


def test_a_failed_run_leaves_the_former_file_and_names_what_it_had(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("old")
    with pytest.raises(ZeroDivisionError) as failed, OutputFile(file) as out:
        out.write("half\n")
        _ = 1 / 0
    assert file.read_text() == "old"
    (note,) = failed.value.__notes__
    (kept,) = [one for one in tmp_path.iterdir() if one != file]
    assert str(kept) in note
    assert kept.read_text() == "half\n"


def test_a_run_that_fails_before_its_first_line_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), OutputFile(tmp_path / "out"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["itself", "symbolic link", "hard link", "another spelling"])
def test_an_output_is_never_an_input(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "calls"
    source.write_text("calls")
    out = tmp_path / "out"
    if kind == "symbolic link":
        out.symlink_to(source)
    elif kind == "hard link":
        out.hardlink_to(source)
    else:
        out = source if kind == "itself" else tmp_path / "." / ".." / tmp_path.name / "calls"
    with pytest.raises(UnwritableFile, match="which is read; name another file"), OutputFile(out, inputs=[source]):
        pass
    assert source.read_text() == "calls"


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    written(pipe, "a", "b")
    reader.join(10)
    assert read == ["a\nb\n"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_stays_a_device() -> None:
    written(Path("/dev/null"), "x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(UnwritableFile, match="No space left"):
        written(Path("/dev/full"), "x")


def test_what_a_shell_opened_is_appended_to(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("before\n")
    with file.open("a") as stream:
        written(Path(f"/proc/self/fd/{stream.fileno()}"), "after")
        (tmp_path / "link").symlink_to(f"/dev/fd/{stream.fileno()}")  # as /dev/stdout is one
        written(tmp_path / "link", "again")
    assert file.read_text() == "before\nafter\nagain\n"


@pytest.mark.parametrize(
    ("name", "reason"), [("folder", "is a folder"), ("absent/out", "No such file"), ("x" * 300, "File name too long")]
)
def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnwritableFile, match=reason), OutputFile(tmp_path / name):
        raise AssertionError("the work began")


def test_a_name_of_the_longest_kind_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / ("长" * 85)  # 255 bytes
    written(file, "x")
    assert file.read_text() == "x\n"


def test_stdout_is_never_an_input_either(tmp_path: Path) -> None:
    source = tmp_path / "calls"
    source.write_text("calls\n")
    code = "import sys; from pathlib import Path; from pipeline.files import OutputFile\n"
    code += "with OutputFile(Path('-'), inputs=[Path(sys.argv[1])]) as out: out.write('x')"
    with source.open("a") as appended:
        done = subprocess.run([sys.executable, "-c", code, source], stdout=appended, stderr=subprocess.PIPE, text=True)
    assert "which is read; name another file" in done.stderr
    assert source.read_text() == "calls\n"


def test_what_was_kept_is_counted_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ZeroDivisionError) as failed, OutputFile(folder / "out") as out:
        out.write("x\n")
        shutil.rmtree(folder)
        _ = 1 / 0
    assert not hasattr(failed.value, "__notes__")


def test_of_two_at_once_the_last_one_wins_whole(tmp_path: Path) -> None:
    file = tmp_path / "out"
    with OutputFile(file) as first:
        first.write("1\n" * 5_000)
        with OutputFile(file) as second:
            second.write("2\n")
        first.write("1\n")
    assert file.read_text() == "1\n" * 5_001
    assert list(tmp_path.iterdir()) == [file]


def test_a_small_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    replace_file(tmp_path / "running.json", b"{}")
    replace_file(tmp_path / "running.json", b"[]")
    assert (tmp_path / "running.json").read_bytes() == b"[]"
    assert (tmp_path / "running.json").stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 1
