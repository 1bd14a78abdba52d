"""`yyc3 up` on a machine with other accounts, and the commands beside it: sockets, addresses, models."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import redis

from pipeline import Client
from pipeline.models import DEFAULT_FILE
from schemas.errors import UnknownModel
from tests.support.exclusive import reserve_port
from tests.support.sandbox import wait_for
from tests.support.up import SIMULATED, Command, Up

WAIT = ("--wait", "--timeout", "60")
CANARY = "金丝雀唱了七首歌"


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A folder for XDG_RUNTIME_DIR; pytest's own have too long paths for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="yyc3-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def other_models(folder: Path, name: str = "our-chat") -> Path:
    """A models.toml with one entry that the default file does not have."""
    file = folder / "models.toml"
    file.write_text(f'[models."{name}"]\nkinds = ["chat", "intent", "sentiment"]\nport = {reserve_port()}\n')
    return file


def test_no_other_account_can_reach_the_servers_and_the_application_is_no_superuser(
    tmp_path: Path, runtime: Path
) -> None:
    with Up(tmp_path / "home", *SIMULATED, XDG_RUNTIME_DIR=str(runtime)) as up:
        (sockets,) = runtime.iterdir()
        assert sockets.stat().st_mode & 0o777 == 0o700
        for part in ("valkey-server", r"bin/postgres -D"):
            server = up.find(part)
            assert server is not None
            assert [one for one in server.net_connections("inet") if one.status == "LISTEN"] == []
        info = json.loads(up.yyc3("info", "--json"))
        for url, name in ((info["database_url"], "database"), (info["redis_url"], "redis")):
            assert str(sockets) in (parse_qs(urlsplit(url).query).get("host", [urlsplit(url).path])[0]), name
        with psycopg.connect(info["database_url"]) as connection:
            rights = "SELECT rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user"
            assert connection.execute(rights).fetchall() == [(False, False, False)]
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("COPY pg_am TO PROGRAM 'true'")
        shown = up.yyc3("info") + up.said
        for secret in (urlsplit(info["database_url"]).password, urlsplit(info["redis_url"]).password):
            assert secret is not None
            assert secret not in shown
        assert "negative" in up.yyc3("submit", "sentiment", "--text", "太差了，投诉！", *WAIT)


def test_a_folder_of_sockets_that_vanishes_is_made_again_elsewhere(tmp_path: Path, runtime: Path) -> None:
    """As at the end of a login session, or by a cleaner of temporary files."""
    with Up(tmp_path / "home", *SIMULATED, XDG_RUNTIME_DIR=str(runtime)) as up:
        up.yyc3("submit", "sentiment", "--text", "谢谢", *WAIT)
        shutil.rmtree(runtime)
        for server in ("postgres", "valkey"):
            wait_for(lambda server=server: f"{server} runs again, at another address" in up.said, f"{server} to move")  # type: ignore[misc]
        assert "positive" in up.yyc3("submit", "sentiment", "--text", "谢谢", *WAIT)


def test_words_that_pass_through_redis_are_never_on_its_disk(tmp_path: Path) -> None:
    with Up(tmp_path / "home", *SIMULATED) as up:
        assert up.yyc3("submit", "chat", "--text", f"请重复：{CANARY}", "--stream")
        found = json.loads(up.yyc3("info", "--json"))
        with redis.Redis.from_url(found["redis_url"].replace("redis+socket", "unix")) as client:
            client.set("left", CANARY)
        up.kill("valkey-server")
        wait_for(lambda: "valkey runs again" in up.said, "valkey to run again")
    files = [file for file in up.home.rglob("*") if file.is_file() and "postgres" not in file.parts]
    assert [file for file in files if CANARY.encode() in file.read_bytes()] == []
    assert {file.parent for file in files} == {up.home}


def test_tcp_is_there_where_it_is_asked_for_and_takes_passwords_alone(tmp_path: Path) -> None:
    with Up(tmp_path / "home", *SIMULATED, "--tcp", "--json") as up:
        ready = json.loads(up.printed.read_text())
        assert ready["event"] == "ready"
        assert ready["home"] == str(up.home)
        database, broker = urlsplit(ready["database_url"]), urlsplit(ready["redis_url"])
        assert (database.hostname, broker.hostname) == ("127.0.0.1", "127.0.0.1")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(ready["database_url"].replace(database.password or "", "wrong"))
        with redis.Redis(port=broker.port or 0) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with Client(database_url=ready["database_url"], redis_url=ready["redis_url"]) as client:
            job = client.submit({"kind": "sentiment", "text": "谢谢"})
            assert client.result(job, timeout=60).result
        assert {one["model"] for one in ready["endpoints"] if one["answers"]} == {
            "chatglm3-6b",
            "codegeex4-all-9b",
            "cogagent",
        }
        assert ready["flower_url"].startswith("http://127.0.0.1:")


def test_other_commands_know_the_models_and_the_endpoint_of_a_running_up(tmp_path: Path) -> None:
    models = other_models(tmp_path)
    with Up(tmp_path / "home", *SIMULATED, YYC3_MODELS_FILE=os.path.relpath(models)) as up:
        outcome = json.loads(up.yyc3("submit", "sentiment", "--text", "谢谢", "--json", *WAIT))
        assert outcome["model"] == "our-chat"
        health = up.yyc3("health")
        assert "our-chat.bulk" in health
        assert "chatglm3-6b" not in health
        assert json.loads(up.yyc3("info", "--json"))["models_file"] == str(models)
        # What a command is given itself counts.
        other = up.run(
            "submit", "sentiment", "--text", "谢谢", "--model", "our-chat", YYC3_MODELS_FILE=str(DEFAULT_FILE)
        )
        assert other.returncode == 2
        assert "our-chat" in other.stderr


def test_up_says_which_endpoints_answer_and_what_to_start(tmp_path: Path) -> None:
    with Up(tmp_path / "home", YYC3_MODELS_FILE=str(other_models(tmp_path))) as up:
        assert re.search(r"our-chat: http://127.0.0.1:\d+: .* does not answer → start vLLM there", up.said)


def test_a_command_goes_on_when_up_was_stopped_and_started_again(tmp_path: Path) -> None:
    calls = tmp_path / "calls.jsonl"
    turns = [{"speaker": "customer", "text": "我等了三天，太慢了，我要退款。"}] * 20
    lines = [json.dumps({"call_id": f"c{number}", "turns": turns}) for number in range(1_000)]
    calls.write_text("\n".join(lines))
    with Up(tmp_path / "home", "--simulate", "--speed", "2") as up:
        analysis = Command(up, "calls", "analyze", str(calls), "--out", str(tmp_path / "reports.jsonl"))
        wait_for(lambda: _running(up), "some jobs to run")
        assert up.stop() == 0
        wait_for(lambda: "waiting for the database" in analysis.said, "the command to say that it waits")
        up.start()
        assert analysis.wait() == 0, analysis.said
    assert "1000 calls" in analysis.said


def _running(up: Up) -> bool:
    rows = [json.loads(line) for line in up.yyc3("queues", "--json").splitlines()]
    return any(row.get("running_jobs") for row in rows)


def test_models_are_read_again_when_their_file_changes_and_a_bad_file_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = other_models(tmp_path)
    first = models.read_text()
    job = {"kind": "sentiment", "text": "谢谢", "cache": False}
    with Up(tmp_path / "home", *SIMULATED, YYC3_MODELS_FILE=str(models)) as up:
        monkeypatch.setenv("YYC3_HOME", str(up.home))
        with Client() as client:
            models.write_text(first.replace("kinds", "kins"))
            wait_for(lambda: "models.our-chat: kinds: " in up.said, "the reason to be said")
            wait_for(lambda: "is refused" in (up.home / "worker-bulk.log").read_text(), "the worker to refuse it")
            assert client.result(client.submit({**job, "model": "our-chat"}), timeout=60).model == "our-chat"
            models.write_text(first + f'[models."second"]\nkinds = ["sentiment"]\nport = {reserve_port()}\n')
            added = wait_for(lambda: client.submit({**job, "model": "second"}), "the entry", ignoring=UnknownModel)
            assert client.result(added, timeout=60).model == "second"
            assert "exited with code" not in up.said, "workers begin again by themselves"
            assert client.result(client.submit({**job, "model": "our-chat"}), timeout=60).model == "our-chat"


def test_a_process_that_hangs_is_said(tmp_path: Path) -> None:
    with Up(tmp_path / "home", *SIMULATED) as up:
        hung = wait_for(lambda: up.find("pipeline.cli recover"), "recovery")
        assert hung is not None
        name = f"recovery.{hung.pid}@"
        wait_for(lambda: name in up.yyc3("queues", "--json"), "its first heartbeat")
        hung.suspend()
        try:
            wait_for(lambda: re.search(f"{name}.* runs and is not heard of", up.said), "the word about it")
            assert f"{name}" in up.run("health").stdout
        finally:
            hung.resume()
        wait_for(lambda: re.search(f"{name}.* is heard of again", up.said), "its return")
