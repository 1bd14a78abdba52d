"""What surrounds every command: closed descriptors, odd encodings, Ctrl-C at any moment, bugs."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.cli.times import instant, moment
from schemas.errors import InvalidSetting

YYC3 = Path(sys.executable).with_name("yyc3")


def run(*arguments: str | bytes, shell: str = 'exec "$@"', **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command through a shell, which may close or redirect something first."""
    return subprocess.run(
        ["bash", "-c", shell, "bash", YYC3, *arguments],
        capture_output=True,
        timeout=60,
        env={**os.environ, "YYC3_HOME": "/nonexistent/home", **environment},
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_descriptor_is_no_reason_to_crash(closed: str) -> None:
    done = run("--version", shell=f'exec "$@" {closed}')
    assert done.returncode == 0
    done = run("jobs", "list", shell=f'exec "$@" {closed}')
    assert done.returncode == 2


def test_a_full_disk_under_the_output_is_one_sentence() -> None:
    done = run("schema", shell='exec "$@" >/dev/full')
    assert done.returncode == 2
    assert done.stderr == b"error the output cannot be written: No space left on device\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = run("schema", shell='"$@" | head -c 1; exit ${PIPESTATUS[0]}')
    assert done.returncode == 0
    assert done.stderr == b""


@pytest.mark.parametrize("encoding", ["gbk", "ascii", "latin-1"])
def test_a_terminal_without_a_sign_gets_a_question_mark(encoding: str) -> None:
    done = run("jobs", "list", "--since", "昨天😀", PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert b"--since:" in done.stderr
    assert b"Traceback" not in done.stderr


def test_arguments_that_are_no_text_are_refused_in_a_sentence(tmp_path: Path) -> None:
    done = run("submit", "intent", "--text", b"\xc4\xe3\xba\xc3")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    done = run("calls", "analyze", os.fsencode(tmp_path) + b"/\xc4\xe3.jsonl", "--out", "/dev/null")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_a_schema_nested_too_deep_is_refused_in_a_sentence() -> None:
    done = run("submit", "vision", "--text", "?", "--image", "https://h/p.png", "--schema", "[" * 100_000)
    assert done.returncode == 2
    assert b"schema: is nested too deep" in done.stderr


@pytest.mark.parametrize("moment", [0.02, 0.1, 0.2, 0.4])
def test_ctrl_c_at_any_moment_is_one_line(moment: float) -> None:
    """The moment counts from the first import of `main`: before it, Python itself is what is interrupted."""
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import time, sys; sys.argv = ['yyc3', 'schema']\n{INTERRUPTED}".replace("MOMENT", str(moment)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        _, said = process.communicate(timeout=60)
    assert b"Traceback" not in said
    assert process.returncode in {0, 130}


# Sends itself SIGINT after a moment, in which modules are imported or the command runs.
INTERRUPTED = f"""
import os, threading
from pipeline.cli import main

class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == "pipeline.cli.edge":
            threading.Timer(MOMENT, os.kill, (os.getpid(), {int(signal.SIGINT)})).start()

sys.meta_path.insert(0, Interrupts())
main()
"""


def test_a_bug_is_one_sentence_with_its_place_and_debug_shows_it_all() -> None:
    broken = "import sys; sys.argv = ['yyc3', *sys.argv[1:]]; import pipeline.cli.app as app\n"
    broken += "def fail(): return {}['words of a caller']\n"
    broken += "app.run_command = fail\nfrom pipeline.cli import main\nmain()"
    plain = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, timeout=60)
    assert plain.returncode == 4
    assert "error: a bug of this program, KeyError at" in plain.stderr
    assert "words of a caller" not in plain.stderr
    whole = subprocess.run([sys.executable, "-c", broken, "--debug"], capture_output=True, text=True, timeout=60)
    assert whole.returncode == 4
    assert "Traceback" in whole.stderr


@pytest.mark.parametrize(
    "text", ["999999d", "999999999d", "0001-01-01", "9999-12-31T23:59:59-23:59", "gestern", "", "-5h"]
)
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidSetting, match="--since: "):
        instant("--since", text)


def test_a_deadline_that_is_over_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="--deadline: 2020-01-01 is in the past"):
        moment("--deadline", "2020-01-01")


def test_a_deadline_may_be_so_long_from_now() -> None:
    found = moment("--deadline", "90m")
    assert found is not None
    assert timedelta(minutes=89) < found - datetime.now(UTC) < timedelta(minutes=91)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_end_says_what_goes_on(number: signal.Signals) -> None:
    """As Ctrl-C: `timeout`, a closed terminal or a service manager ends commands too."""
    program = "import sys; sys.argv = ['yyc3', 'schema']\nimport pipeline.cli.app as app, time\n"
    program += "def wait():\n    print('waits', flush=True); time.sleep(60)\napp.run_command = wait\n"
    program += "from pipeline.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # `nohup` ignores one of them
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, b"stopped\n")


@pytest.mark.parametrize("home", ["a file", "a file/below", "a loop", "/proc/x"])
def test_a_home_that_cannot_be_made_is_refused_in_a_sentence(tmp_path: Path, home: str) -> None:
    (tmp_path / "a file").write_text("")
    (tmp_path / "a loop").symlink_to("a loop")
    done = run("up", YYC3_HOME=str(tmp_path / home))
    assert done.returncode == 2
    assert b"YYC3_HOME: " in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_pipe_in_place_of_a_file_of_settings_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".env")
    assert run("queues", shell=f'cd {tmp_path}; exec "$@"').returncode == 2


def test_times_of_people_are_read() -> None:
    assert instant("--since", None) is None
    found = instant("--since", "2026-11-22T03:00+08:00")
    assert found is not None
    assert found.isoformat() == "2026-11-21T19:00:00+00:00"
    assert instant("--since", " 90m ") is not None
