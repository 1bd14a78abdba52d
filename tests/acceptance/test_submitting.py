"""Every example of docs/submitting.md runs unchanged, against everything that `yyc3 up --simulate` starts."""

import ast
import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from jsonschema import Draft202012Validator

from pipeline import Client
from pipeline.models import DEFAULT_FILE
from schemas.ids import JobId
from schemas.results import ChatResult, JobState
from schemas.streams import stream_name
from tests.support.exclusive import exclusive, reserve_port
from tests.support.sandbox import ROOT, Sandbox, wait_for
from tests.support.submitting_page import examples, fences, json_examples, text

TYPES = ROOT / "docs" / "schemas" / "yyc3.d.ts"


@dataclass
class Up:
    """A running `yyc3 up`, and a folder in which programs of callers run."""

    sandbox: Sandbox
    folder: Path

    def run(self, *command: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.sandbox.environment,
            cwd=folder or self.folder,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=90,
        )

    def client(self) -> Client:
        return Client(database_url=self.sandbox.database_url, redis_url=self.sandbox.redis_url)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("caller")
    sandbox = Sandbox("", "", folder / "home")
    sandbox.home.mkdir()
    models = folder / "models.toml"
    entries = re.sub(r"(?m)^port = \d+", lambda _: f"port = {reserve_port()}", DEFAULT_FILE.read_text("utf-8"))
    models.write_text(entries, "utf-8")
    sandbox.environment = {
        **{name: value for name, value in sandbox.environment.items() if not name.endswith("_URL")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "YYC3_MODELS_FILE": str(models),
        "YYC3_FLOWER_PORT": str(reserve_port()),
    }
    with ExitStack() as stack:
        with exclusive("ports"):
            started = stack.enter_context(sandbox.process("pipeline.cli", "up", "--simulate", "--tcp"))
            started.wait_until_logged("ready    try: ", "yyc3 up")
        running = json.loads(sandbox.yyc3("info", "--json").stdout)
        sandbox.database_url, sandbox.redis_url = running["database_url"], running["redis_url"]
        sandbox.environment["REDIS_URL"] = sandbox.redis_url
        sandbox.environment["DATABASE_URL"] = sandbox.database_url
        yield Up(sandbox, folder)
        assert started.terminate(60) == 0


def test_every_example_is_of_a_kind_that_is_run() -> None:
    json_blocks = {"json job", "json result", "json reply"}
    assert fences() == {"bash", "python", "python crm.py", "js submit.mjs", "js follow.mjs", "ts", *json_blocks}


def test_every_job_has_the_result_of_the_page(up: Up) -> None:
    schema = json.loads((TYPES.parent / "yyc3.schema.json").read_text("utf-8"))
    valid = Draft202012Validator({"$ref": "#/$defs/Outcome", "$defs": schema["$defs"]})
    jobs, results = json_examples("job"), json_examples("result")
    with up.client() as client:
        ids = [client.submit(job) for job in jobs]
        outcomes = [json.loads(client.result(job_id, timeout=60).model_dump_json()) for job_id in ids]
    for job, expected, outcome in zip(jobs, results, outcomes, strict=True):
        assert outcome["state"] == "succeeded", outcome
        valid.validate(outcome)
        assert outcome["kind"] == expected["kind"] == job["kind"]
        assert set(outcome["result"]) == set(expected)
        assert outcome["result"].get("label") == expected.get("label")
        assert set(outcome["result"].get("probabilities", {})) == set(expected.get("probabilities", {}))


@pytest.mark.parametrize(
    ("index", "pattern"),
    [
        (0, r"billing 0\.9\d+\n"),
        (1, r"(\d of 2\n)*2 of 2\n\['positive', 'negative'\]\n"),
        (2, r"(cancelled cancelled|settled before succeeded)\nTrue\nduplicate_job False .*use a new key\n"),
        (3, r"（模拟回答）(.+)\nsucceeded\n（模拟回答）\1\n"),
    ],
)
def test_every_python_program_runs(up: Up, index: int, pattern: str) -> None:
    programs = examples("python")
    assert len(programs) == 4
    done = up.run(sys.executable, "-c", programs[index])
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(pattern, done.stdout), done.stdout


def test_every_shell_example_runs(up: Up, tmp_path: Path) -> None:
    image = json_examples("job")[-1]["images"][0].partition(",")[2]
    (tmp_path / "receipt.png").write_bytes(base64.b64decode(image))
    printed = []
    for script in examples("bash"):
        done = up.run("bash", "-euc", script, folder=tmp_path)
        assert done.returncode == 0, f"{script}\n{done.stderr}"
        printed.append(done.stdout)
    submitted, cancelled, _ = printed
    for pattern in ("^refund, confidence", '"label":"negative"', "^（模拟回答）", "^def add", "^.simulated answer"):
        assert re.search(pattern, submitted, re.MULTILINE), f"{pattern}\n{submitted}"
    assert re.search('"kind":"sentiment","state":"(cancelled|succeeded)"', cancelled), cancelled
    for name in ("yyc3.schema.json", "yyc3.d.ts"):
        assert (tmp_path / name).read_text("utf-8") == (TYPES.parent / name).read_text("utf-8")


def test_exit_codes_are_those_of_the_page(up: Up) -> None:
    def code(*arguments: str) -> int:
        return up.run("yyc3", *arguments).returncode

    assert code("submit", "sentiment", "--text", "好", "--wait") == 0
    assert code("submit", "sentiment", "--text", "好", "--deadline", "2020-01-01T00:00:00", "--wait") == 2
    assert code("submit", "sentiment", "--text", "") == 2


def test_a_python_program_with_celery_alone_gets_its_replies(up: Up, tmp_path: Path) -> None:
    (program,) = examples("python crm.py")
    (tmp_path / "crm.py").write_text(program, encoding="utf-8")
    (command,) = re.findall(r"`(celery -A crm .*?)`", text())
    done = up.run(sys.executable, "crm.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            env={**up.sandbox.environment, "PYTHONUNBUFFERED": "1"},
            cwd=tmp_path,
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(lambda: "call-7: succeeded" in log.read_text("utf-8") or worker.poll() is not None, "the reply", 60)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(30)
    found = re.search(r"call-7: succeeded (\{.*\})$", log.read_text("utf-8"), re.MULTILINE)
    assert found, log.read_text("utf-8")
    result = ast.literal_eval(found[1])
    expected = {"kind": "sentiment", "label": "negative", "truncated": False}
    assert {name: result[name] for name in expected} == expected


def node(up: Up, folder: Path, name: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / name).write_text(program, encoding="utf-8")
    return up.run("node", name, *arguments, folder=folder)


def test_a_node_program_submits_and_gets_its_replies(up: Up, node_modules: Path) -> None:
    (program,) = examples("js submit.mjs")
    done = node(up, node_modules, "submit.mjs", program)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"job (\d+) is stored\norder-8: succeeded refund\n", done.stdout)
    assert found, done.stdout
    with up.client() as client:
        assert client.get(JobId(int(found[1]))).state is JobState.SUCCEEDED
    # The same key again: the same job, and its outcome again.
    assert node(up, node_modules, "submit.mjs", program).stdout == done.stdout
    other = node(up, node_modules, "submit.mjs", program.replace("东西我不要了，把钱退给我", ""))
    assert other.stdout.startswith("order-8: job refused: text: "), other.stdout + other.stderr


def test_a_node_program_reads_a_stream(up: Up, node_modules: Path) -> None:
    (program,) = examples("js follow.mjs")
    with up.client() as client:
        job = client.submit({"kind": "chat", "messages": [{"role": "user", "content": "讲个故事"}], "stream": True})
        live = node(up, node_modules, "follow.mjs", program, str(job))
        outcome = client.result(job, timeout=30)
    assert live.returncode == 0, live.stderr
    assert isinstance(outcome.result, ChatResult)
    assert live.stdout == f"{outcome.result.text}\n"
    assert node(up, node_modules, "follow.mjs", program, str(job)).stdout == live.stdout


def test_the_node_reader_restarts_and_reports_a_gap(up: Up, node_modules: Path) -> None:
    (program,) = examples("js follow.mjs")
    streams: dict[int, list[tuple[str, str, int, str]]] = {
        1: [("100-0", "text", 1, "half an"), ("300-0", "restart", 2, "who"), ("300-1", "text", 2, "le")],
        2: [("100-0", "text", 1, "a"), ("100-2", "text", 1, "c"), ("100-3", "text", 1, "d")],
        3: [("100-1", "text", 1, "b"), ("200-0", "restart", 2, "all of it")],
    }
    printed = {}
    with redis.Redis.from_url(up.sandbox.redis_url) as broker:
        for number, entries in streams.items():
            for entry_id, event, attempt, piece in [*entries, ("9007199254740991-0", "end", 1, "")]:
                fields: dict[Any, Any] = {"event": event, "attempt": attempt, "text": piece}
                broker.xadd(stream_name(JobId(number)), fields, id=entry_id)
            printed[number] = node(up, node_modules, "follow.mjs", program, str(number)).stdout
    assert printed == {
        1: "half an\n(begun again)\nwhole\n",
        2: "a\n(a piece is missing: show the text of the outcome)\n",
        3: "\n(begun again)\nall of it\n",
    }


WRONG = [
    ('kind: "sentiment"', 'kind: "weather"', '"weather"'),
    ('text: "谢谢", ', "", "not assignable to type 'SubmitArguments'"),
    ('job_key: "call-7", ', "", "'job_key' is missing"),
    ('job_key: "call-7"', 'job_key: "call-7", mood: 1', "'mood' does not exist"),
    ('case "refused"', 'case "rejected"', '"rejected"'),
    ("reply.error.code", "reply.outcome", "'outcome' does not exist"),
    ("result.label", "result.text", "'text' does not exist"),
]
MORE = """
import type { Job, Outcome, StreamEvent } from "./yyc3.js";
export const dialogue: Job = { kind: "intent", turns: [{ speaker: "customer", text: "你好" }] };
export const code = (outcome: Outcome): string | undefined => outcome.error?.code;
export const shown = (event: StreamEvent): string => (event.event === "text" ? event.text : "");
"""


def test_the_types_accept_the_program_of_the_page_and_no_wrong_one(node_modules: Path) -> None:
    (program,) = examples("ts")
    programs = {"right.ts": program + MORE}
    for index, (right, wrong, _) in enumerate(WRONG):
        assert right in program
        programs[f"wrong{index}.ts"] = program.replace(right, wrong)
    for name, written in {**programs, "yyc3.d.ts": TYPES.read_text("utf-8")}.items():
        (node_modules / name).write_text(written, encoding="utf-8")
    compiler = node_modules / "node_modules" / ".bin" / "tsc"
    options = ["--strict", "--noEmit", "--pretty", "false", "--module", "nodenext", "--target", "es2022"]
    done = subprocess.run(
        [str(compiler), *options, *programs], cwd=node_modules, capture_output=True, text=True, timeout=120
    )
    complaints = {name: "" for name in programs}
    for name, complaint in re.findall(r"^(\S+?)\(\d+,\d+\): (error .*(?:\n  .*)*)", done.stdout, re.MULTILINE):
        complaints[name] += complaint
    assert complaints.pop("right.ts") == ""
    for (_, wrong, reason), complaint in zip(WRONG, complaints.values(), strict=True):
        assert reason in complaint, f"{wrong}\n{done.stdout}"


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((ROOT / "tests" / "node" / "package-lock.json").read_text("utf-8"))
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]
    assert all("integrity" in package for name, package in lock["packages"].items() if name)
