"""Chinese at the terminal: every message has a translation, and texts put together of several are translated too."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.language import translated
from schemas.errors import ErrorCode, InvalidJob
from schemas.jobs import parse_job
from tests.support.messages import messages

CATALOGUE: dict[str, str] = json.loads((Path("pipeline/cli/messages.zh.json")).read_text("utf-8"))
HAN = re.compile(r"[\u4e00-\u9fff]")
YYC3 = Path(sys.executable).with_name("yyc3")


def test_every_message_has_a_translation() -> None:
    wanted = messages() | {code.meaning: "schemas/errors.py" for code in ErrorCode}
    missing = {message: file for message, file in wanted.items() if message not in CATALOGUE}
    assert not missing, f"write them into pipeline/cli/messages.zh.json: {missing}"


def test_every_translation_is_chinese_and_has_the_same_places() -> None:
    for english, chinese in CATALOGUE.items():
        assert HAN.search(chinese), english
        places = re.findall(r"\{(\d*)\}", chinese)
        assert len(places) == english.count("{}"), english
        assert not any(places) or sorted(map(int, places)) == list(range(len(places))), english


def test_a_new_message_without_a_translation_is_found() -> None:
    assert "job {} is stored; see: yyc3 jobs show {}" in messages()
    assert "there is no job {}" in messages()
    assert "Find the intent of an utterance." in messages()
    assert "must be a whole number" in messages()


@pytest.mark.parametrize(
    "text",
    [
        "job 5 is stored; see: yyc3 jobs show 5",
        "models file /etc/x.toml is not encoded in UTF-8; save it as UTF-8",
        "http://127.0.0.1:10086 does not answer",
        "my calls.jsonl: is compressed with gzip; unpack it first: gunzip -k FILE",
        "queue q has 5 jobs of tenant shop and accepts 4; submit again in 3 s",
        "stopped; job 5 continues; ask again: yyc3 jobs show 5",
        "postgres: Postgres cannot be reached: no such host",
        "--since: gestern is not like 90m, 2h, 3d, or a time like 2026-11-22T03:00+08:00",
    ],
)
def test_a_text_of_several_messages_is_chinese(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("YYC3_LANG", "zh")
    chinese = translated(text)
    assert HAN.search(chinese)
    assert not re.search(r"\b(is|has|not|cannot|see|submit again|continues)\b", chinese), chinese


def test_all_mistakes_of_a_job_are_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YYC3_LANG", "zh")
    with pytest.raises(InvalidJob) as refused:
        parse_job({"kind": "chat", "messages": "hi", "temperature": 1, "priority": "high"})
    assert "must be a whole number" in refused.value.message, "errors for programs stay English"
    assert not re.search(r"\b(must|is|it|belongs|write)\b", translated(refused.value.message))


@pytest.mark.parametrize(
    ("environment", "chinese"),
    [
        ({"LANG": "zh_CN.UTF-8"}, True),
        ({"LANG": "zh_CN.UTF-8", "YYC3_LANG": "en"}, False),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "zh_TW"}, True),
        ({"LANG": "C", "YYC3_LANG": "zh"}, True),
        ({"LANG": "C"}, False),
    ],
)
def test_the_locale_or_a_variable_chooses(environment: dict[str, str], chinese: bool) -> None:
    whole = {"PATH": "/usr/bin:/bin", "YYC3_HOME": "/nonexistent", "COLUMNS": "120", **environment}
    for arguments in (["--help"], ["submit", "chat", "--help"], ["jobs", "show", "x"], ["jobs", "list"]):
        done = subprocess.run([YYC3, *arguments], capture_output=True, text=True, env=whole, timeout=60)
        assert bool(HAN.search(done.stdout + done.stderr)) is chinese, (arguments, done.stdout, done.stderr)
