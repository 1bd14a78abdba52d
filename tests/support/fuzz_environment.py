"""Broken settings, files of settings, models files, arguments and output names, for `make fuzz`."""

import contextlib
import io
import os
import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from pipeline.cli.app import run_command
from pipeline.cli.exit_codes import Exit
from pipeline.files import OutputFile
from pipeline.models import DEFAULT_FILE, load_models
from pipeline.settings import load_settings, variables
from schemas.errors import PipelineError

CANARY = "CANARY13800000000"
_VALUES = [
    "postgresql://u:CANARY13800000000@h:5432/d",
    "redis://:CANARY13800000000@h:6379/0",
    "redis+socket:///run/redis/redis.sock?virtual_host=1",
    "amqp://u:p@h//",
    "http://127.0.0.1:10086/v1",
    "chatglm3-6b",
    "user:CANARY13800000000",
    "20",
    "-1",
    "1e999",
    "nan",
    "0x10",
    "",
    " ",
    "~",
    "~nobody-here/x",
    "\u202e",
    "退款",
    "\udcff\udcfe",
    "[::1",
    "http://[::1]:99999/",
    "a" * 3_000,
]
_OPTIONS = [
    *("--text", "--json", "--wait", "--label", "--key", "--tenant", "--priority", "--deadline", "--timeout", "--since"),
    *("--until", "--tag", "--batch", "--limit", "--state", "--kind", "--schema", "--image", "--out", "--each", "--all"),
    *(
        "--help",
        "--code",
        "--job",
        "--per-second",
        "--here",
        "--model",
        "--stream",
        "--",
        "-",
        "@",
        "@@x",
        "x=y",
        "=",
        "5",
    ),
]
_COMMANDS = [
    *(("submit", kind) for kind in ("intent", "sentiment", "chat", "code", "vision")),
    *(("jobs", name) for name in ("show", "list", "find", "cancel")),
    *(("dead-letters", name) for name in ("list", "show", "replay", "discard")),
    ("calls", "analyze"),
    ("queues",),
    ("health",),
    ("info",),
    ("schema",),
    ("nonsense",),
]


def _value(draw: random.Random) -> str:
    value = draw.choice(_VALUES)
    if draw.random() < 0.5 and value:
        at = draw.randrange(len(value))
        value = (
            value[:at]
            + draw.choice(("", "\n", "\t", "%", "@", "#", ":", "💥", "\udc80"))
            + value[at + draw.randrange(2) :]
        )
    return value.replace("\x00", "")


def _refused_in_a_sentence(error: PipelineError) -> None:
    assert error.message
    assert "\n" not in error.message
    assert CANARY not in error.message


# --- settings


def a_setting(draw: random.Random) -> dict[str, str]:
    """Return variables of this program with odd values."""
    return {name: _value(draw) for name in draw.sample(variables(), draw.choice((1, 1, 2, 5)))}


def check_setting(value: dict[str, str]) -> None:
    """They are accepted, or refused in one sentence that names the variable."""
    with TemporaryDirectory() as folder, contextlib.chdir(folder), patch.dict(os.environ, value, clear=True):
        try:
            load_settings()
        except PipelineError as error:
            _refused_in_a_sentence(error)
            assert any(name in error.message for name in value), error.message


def a_dotenv(draw: random.Random) -> bytes:
    """Return a file .env that is broken, or not text at all."""
    lines = [f"{name}={_value(draw)}" for name in draw.sample(variables(), 3)]
    raw = "\n".join([*lines, draw.choice(("'", '"open', "export", "=", "A B=C", "${X:-y}", "# 注释"))])
    data = bytearray(raw.encode(draw.choice(("utf-8", "utf-8", "utf-16", "gb18030")), "replace"))
    for _ in range(draw.choice((0, 1, 4))):
        data[draw.randrange(len(data))] = draw.randrange(1, 256)
    return bytes(data)


def check_dotenv(value: bytes) -> None:
    """It is accepted, or refused in one sentence."""
    with TemporaryDirectory() as folder, contextlib.chdir(folder), patch.dict(os.environ, {}, clear=True):
        Path(".env").write_bytes(value)
        try:
            load_settings()
        except PipelineError as error:
            _refused_in_a_sentence(error)


# --- models.toml

_MODELS = DEFAULT_FILE.read_bytes()


def a_models_file(draw: random.Random) -> bytes:
    """Return the models file with bytes changed, or lines lost, doubled or mixed."""
    lines = [line for line in _MODELS.splitlines() if not line.startswith(b"#")]
    for _ in range(draw.choice((1, 2, 5))):
        at, how = draw.randrange(len(lines)), draw.random()
        if how < 0.3:
            del lines[at]
        elif how < 0.5:
            lines.insert(at, lines[draw.randrange(len(lines))])
        elif b"=" in lines[at]:
            odd = draw.choice((b"-1", b"true", b"[]", b"{}", b'""', b'"x"', b"1e400", b"nan", b"[[[[", b"2024-01-01"))
            lines[at] = lines[at].partition(b"=")[0] + b"= " + odd
    data = bytearray(b"\n".join(lines))
    if draw.random() < 0.3:
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def check_models_file(value: bytes) -> None:
    """It is accepted, or refused in one sentence that names the file."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "models.toml"
        file.write_bytes(value)
        try:
            load_models(file)
        except PipelineError as error:
            _refused_in_a_sentence(error)
            assert str(file) in error.message


# --- arguments and outputs


def some_arguments(draw: random.Random) -> list[str]:
    """Return a command with options and values in any order."""
    more = [draw.choice(_OPTIONS) if draw.random() < 0.6 else _value(draw) for _ in range(draw.randrange(6))]
    return [*draw.choice(_COMMANDS), *more]


def check_arguments(value: list[str]) -> None:
    """The command ends with a code of ours: there are no servers, so it is refused at some point."""
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        own = {"YYC3_HOME": folder, "PATH": os.environ["PATH"]}
        printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace")
        said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace")
        argv = ["yyc3", *value]
        with patch.dict(os.environ, own, clear=True), patch.object(sys, "argv", argv), contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(printed))
            stack.enter_context(contextlib.redirect_stderr(said))
            code = run_command()
        assert code in set(Exit) - {Exit.STOPPED, Exit.BUG}, code


def an_output(draw: random.Random) -> str:
    """Return the name of an output that may be impossible."""
    odd = (
        "a",
        "a/b",
        ".",
        "..",
        "x" * 255,
        "x" * 256,
        "长" * 85,
        "a\nb",
        "-",
        "\udcff",
        " ",
        "~",
        "in",
        "./in",
        "folder",
        "link",
    )
    return draw.choice(odd) + draw.choice(("", "", "", "/", ".jsonl"))


def check_output(value: str) -> None:
    """It is written whole or refused, and the input is what it was."""
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("in").write_text("calls")
        Path("folder").mkdir()
        Path("link").symlink_to("in")
        if str(Path(value)) == "-":
            return
        try:
            with OutputFile(Path(value), inputs=[Path("in")]) as out:
                out.write("report\n")
            assert Path(value).read_text() == "report\n"
        except PipelineError as error:
            assert error.message
        assert Path("in").read_text() == "calls"
        assert not [one for one in Path().iterdir() if "unfinished" in one.name]
