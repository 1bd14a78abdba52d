"""Files become rows: bad lines beside good ones, repeated ids however far apart, and readers that stop half-way."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import Client
from schemas.batches import BatchStatus
from schemas.errors import BatchTakenOver, DuplicateJob, InvalidBatchFile, InvalidJob
from tests.integration.batches.conftest import Write, openai_line
from tests.support.sandbox import ROOT, Sandbox, wait_for


def rows(sandbox: Sandbox, batch_id: int) -> list[tuple[Any, ...]]:
    return sandbox.query("SELECT custom_id, position, kind FROM jobs WHERE batch_id = %s ORDER BY position", batch_id)


def refused(sandbox: Sandbox, batch_id: int) -> dict[int, str]:
    return dict(sandbox.query("SELECT line, message FROM refused_lines WHERE batch_id = %s", batch_id))


def tables(sandbox: Sandbox) -> int:
    return int(
        sandbox.query("SELECT count(*) FROM pg_class WHERE relname LIKE 'custom_ids_%%' AND relkind = 'r'")[0][0]
    )


def test_bad_lines_are_listed_and_good_ones_are_stored_in_both_forms(
    sandbox: Sandbox, client: Client, write: Write
) -> None:
    lines = [
        openai_line(0),
        "{broken",
        {"custom_id": "s", "kind": "sentiment", "text": "太好了"},
        {"custom_id": "bad", "kind": "sentiment"},
        openai_line(3, guided_json={}),
        openai_line(4, model="none"),
        openai_line(0),
        {"custom_id": "c", "kind": "code", "instruction": "add", "language": "python", "priority": -3},
    ]
    found = client.batches.create(write(lines))
    assert (found.jobs, found.refused, found.input_complete, found.input_lines) == (3, 5, True, 8)
    assert rows(sandbox, found.batch_id) == [("r0", 0, "completion"), ("s", 2, "sentiment"), ("c", 7, "code")]
    assert refused(sandbox, found.batch_id) == {
        2: "is not JSON: unexpected character, expected a string key at character 2",
        4: "provide exactly one of text (one utterance) and turns (a dialogue)",
        5: "body.guided_json: vLLM drops it: write response_format, or structured_outputs.json",
        6: "model: 'none' is not in models.toml; known are chatglm3-6b, codegeex4-all-9b, cogagent",
        7: "custom_id: line 1 has the same one",
    }
    assert sandbox.query("SELECT model, priority, rows FROM chunks ORDER BY 1") == [
        ("chatglm3-6b", 0, 2),
        ("codegeex4-all-9b", -3, 1),
    ]
    assert tables(sandbox) == 0, "custom ids are forgotten"
    assert found.request_counts.model_dump() == {"total": 8, "completed": 0, "failed": 5}


def test_a_repeated_id_is_found_however_far_apart(sandbox: Sandbox, client: Client, write: Write) -> None:
    lines = [openai_line(number) for number in range(12_000)]
    lines += [
        openai_line(1),
        openai_line(1),
        {**openai_line(5), "custom_id": "new"},
        {**openai_line(6), "custom_id": "new"},
    ]
    found = client.batches.create(write(lines))
    assert (found.jobs, found.refused) == (12_001, 3)
    assert refused(sandbox, found.batch_id) == {
        12_001: "custom_id: line 2 has the same one",
        12_002: "custom_id: line 2 has the same one",
        12_004: "custom_id: line 12,003 has the same one",
    }


def test_strict_runs_nothing_of_a_bad_file(sandbox: Sandbox, client: Client, write: Write) -> None:
    file = write([openai_line(0), "{broken", openai_line(0), openai_line(2)])
    with pytest.raises(
        InvalidBatchFile, match=r"was refused, nothing runs: 2 lines are no jobs, such as line 2"
    ) as caught:
        client.batches.create(file, key="k", strict=True)
    batch_id = caught.value.facts["batch_id"]
    found = client.batches.get(batch_id)
    assert (found.status, found.jobs, found.refused) == (BatchStatus.FAILED, 0, 2)
    assert sandbox.query("SELECT count(*) FROM jobs") == [(0,)]
    assert [line["error"]["line"] for line in client.batches.errors(batch_id)] == [2, 3]
    mended = client.batches.create(write(3), key="k", strict=True)
    assert (mended.jobs, mended.refused) == (3, 0)
    assert mended.batch_id != batch_id
    with pytest.raises(InvalidJob, match="its file was refused"):
        client.batches.retry(batch_id)


def test_the_same_file_is_the_same_batch_and_another_one_is_refused(
    sandbox: Sandbox, client: Client, write: Write
) -> None:
    file = write(50)
    first = client.batches.create(file)
    assert first.idempotency_key is not None
    assert client.batches.create(file).batch_id == first.batch_id
    assert client.batches.create(file, key=first.idempotency_key).batch_id == first.batch_id
    keyed = client.batches.create(file, key="mine")
    assert keyed.batch_id != first.batch_id
    for other, priority in ((write(51, "longer"), 0), (write(49, "shorter"), 0), (file, 1)):
        with pytest.raises(DuplicateJob, match="made of another file or with other options"):
            client.batches.create(other, key="mine", priority=priority)
    assert client.batches.create(file, key="mine", name="another name").batch_id == keyed.batch_id
    client.submit_many([{"kind": "sentiment", "text": "好"}], idempotency_key="of a program")
    with pytest.raises(DuplicateJob, match="was not made of a file"):
        client.batches.create(file, key="of a program")
    assert sandbox.query("SELECT count(*) FROM jobs") == [(101,)]


def test_an_empty_file_is_refused_and_no_batch_is_left(sandbox: Sandbox, client: Client, write: Write) -> None:
    with pytest.raises(InvalidBatchFile, match="has no lines"):
        client.batches.create(write(["", "  "]))
    assert sandbox.query("SELECT count(*) FROM batches") == [(0,)]


class _KilledError(Exception):
    pass


def half(upto: int) -> Iterator[dict[str, Any]]:
    """Yield lines, and stop as a program does that is killed."""
    for number in range(upto):
        yield openai_line(number)
    raise _KilledError


@pytest.mark.parametrize("stopped_at", [600, 2_500, 10_499])
def test_a_submitter_that_stopped_goes_on_and_no_row_is_doubled(
    sandbox: Sandbox, client: Client, write: Write, stopped_at: int
) -> None:
    with pytest.raises(_KilledError):
        client.batches.create(half(stopped_at), key="k")
    (before,) = client.batches.list()
    assert not before.input_complete
    assert before.input_waits_since is not None
    assert 0 < before.jobs <= stopped_at
    found = client.batches.create(write(10_500), key="k")
    assert found.batch_id == before.batch_id
    assert (found.jobs, found.refused, found.input_complete) == (10_500, 0, True)
    assert [row[:2] for row in rows(sandbox, found.batch_id)] == [(f"r{at}", at) for at in range(10_500)]
    assert sandbox.query("SELECT sum(rows) FROM chunks") == [(10_500,)]
    assert tables(sandbox) == 0


def test_custom_ids_that_a_crash_of_postgres_emptied_are_made_again(
    sandbox: Sandbox, client: Client, write: Write
) -> None:
    with pytest.raises(_KilledError):
        client.batches.create(half(3_000), key="k")
    (before,) = client.batches.list()
    sandbox.query(f"TRUNCATE custom_ids_{before.batch_id}")
    lines = [*(openai_line(number) for number in range(3_000)), openai_line(7)]
    found = client.batches.create(write(lines), key="k")
    assert (found.jobs, found.refused) == (3_000, 1)
    assert refused(sandbox, found.batch_id) == {3_001: "custom_id: line 8 has the same one"}


class Reader:
    """A program that submits lines in a thread, and stops before line 1,000 until it is told to go on."""

    def __init__(self, client: Client, lines: list[bytes]) -> None:
        self._client, self._lines = client, lines
        self._begun, self._go_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.refused: BatchTakenOver | None = None
        self._thread.start()
        assert self._begun.wait(60)

    def _given(self) -> Iterator[bytes]:
        for number, line in enumerate(self._lines):
            if number == 1_000:
                self._begun.set()
                assert self._go_on.wait(60)
            yield line

    def _run(self) -> None:
        try:
            self._client.batches.create(self._given(), key="k")
        except BatchTakenOver as error:
            self.refused = error

    def go_on(self) -> None:
        self._go_on.set()
        self._thread.join(60)


@pytest.mark.parametrize("bad", [0, 100], ids=["good lines", "some bad ones"])
def test_of_two_readers_the_later_one_goes_on(sandbox: Sandbox, client: Client, write: Write, bad: int) -> None:
    given = [f"{{broken {at}" if bad and at % bad == 0 else openai_line(at) for at in range(8_000)]
    file = write(given)
    first = Reader(client, file.read_bytes().splitlines())
    found = client.batches.create(file, key="k")
    first.go_on()
    assert first.refused is not None
    assert "another process reads the file" in first.refused.message
    assert (found.refused, found.input_complete) == (80 if bad else 0, True)
    assert len({row[0] for row in rows(sandbox, found.batch_id)}) == found.jobs == 8_000 - found.refused


def test_a_reader_of_another_file_under_the_key_disturbs_nobody(client: Client, write: Write) -> None:
    file = write(8_000)
    first = Reader(client, file.read_bytes().splitlines())
    wait_for(lambda: client.batches.list()[0].jobs >= 500, "the first rows")
    with pytest.raises(DuplicateJob, match="made of another file"):
        client.batches.create(write([openai_line(at) for at in range(9_000, 9_600)], "other"), key="k")
    first.go_on()
    assert first.refused is None
    assert client.batches.list()[0].jobs == 8_000


def test_what_is_there_runs_while_a_slow_program_writes_the_rest(sandbox: Sandbox, client: Client) -> None:
    go_on = threading.Event()

    def lines() -> Iterator[dict[str, Any]]:
        yield openai_line(0)
        assert go_on.wait(60)
        yield openai_line(1)

    thread = threading.Thread(target=client.batches.create, args=(lines(),))
    thread.start()
    wait_for(lambda: sandbox.query("SELECT count(*) FROM jobs") == [(0 + 1,)] or None, "the first row")
    go_on.set()
    thread.join(60)
    assert sandbox.query("SELECT count(*) FROM jobs") == [(2,)]


def test_a_cancelled_batch_takes_no_more_lines(sandbox: Sandbox, client: Client) -> None:
    def lines() -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            if number == 600:
                wait_for(lambda: sandbox.query("SELECT count(*) FROM jobs")[0][0], "the first rows")
                client.batches.cancel(client.batches.list()[0].batch_id)
            yield openai_line(number)

    with pytest.raises(BatchTakenOver, match="was cancelled; the rest of its file is not read"):
        client.batches.create(lines(), key="k")
    (found,) = client.batches.list()
    assert found.status is BatchStatus.CANCELLED
    assert found.cancelled == found.jobs > 0


def test_kill_9_of_the_command_and_the_same_command_again(sandbox: Sandbox, client: Client, write: Write) -> None:
    file = write(60_000)
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "batches", "submit", str(file)],
        env=sandbox.environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_for(lambda: sandbox.query("SELECT jobs FROM batches WHERE jobs > 2000"), "some rows")
        process.send_signal(signal.SIGKILL)
    (before,) = client.batches.list()
    assert before.jobs < 60_000, "it was killed half-way"
    again = sandbox.yyc3("batches", "submit", str(file), "--json")
    found = json.loads(again.stdout)
    assert (found["batch_id"], found["jobs"], found["input_complete"]) == (before.batch_id, 60_000, True)
    assert sandbox.query("SELECT count(DISTINCT custom_id), count(*) FROM jobs") == [(60_000, 60_000)]


def test_a_batch_whose_file_nobody_reads_on_expires_after_a_day(sandbox: Sandbox, client: Client) -> None:
    with pytest.raises(_KilledError):
        client.batches.create(half(600), key="k")
    sandbox.query("UPDATE batches SET input_seen_at = now() - interval '25 hours'")
    with sandbox.process("pipeline.cli", "recover"):
        wait_for(lambda: client.batches.list()[0].status is BatchStatus.EXPIRED, "the batch to expire")
    (found,) = client.batches.list()
    assert found.expired == found.jobs
    assert tables(sandbox) == 0
    with pytest.raises(BatchTakenOver, match="expired"):
        client.batches.create(half(700), key="k")


def test_pages_of_input_that_were_cut_name_the_way_on(client: Client, write: Write, tmp_path: Path) -> None:
    import gzip

    whole = gzip.compress(write(5_000).read_bytes())
    file = tmp_path / "batch.jsonl.gz"
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidBatchFile, match=r"ends in the middle .* submit it with --key k to go on") as caught:
        client.batches.create(file, key="k")
    assert client.batches.get(caught.value.facts["batch_id"]).jobs > 0
    file.write_bytes(whole)
    assert client.batches.create(file, key="k").jobs == 5_000


def test_a_sample_takes_some_lines(client: Client, write: Write) -> None:
    found = client.batches.create(write(5_000), sample=0.1)
    assert 400 < found.jobs < 600
    assert found.input_lines == 5_000


def test_a_terminal_less_stdin_is_read_too(sandbox: Sandbox, write: Write) -> None:
    with write(300).open("rb") as stdin:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "batches", "submit", "-", "--strict", "--json"],
            stdin=stdin,
            capture_output=True,
            env=sandbox.environment | {"PYTHONPATH": str(ROOT)},
            cwd=os.sep,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["jobs"] == 300


def test_lines_that_were_read_and_never_stored_do_not_count_as_earlier_ones(
    sandbox: Sandbox, client: Client, write: Write
) -> None:
    with pytest.raises(_KilledError):
        client.batches.create(half(600), key="k")
    (before,) = client.batches.list()
    never = before.input_lines + 1
    sandbox.query(
        f"INSERT INTO custom_ids_{before.batch_id} VALUES (decode(md5('r900'), 'hex'), %s) ON CONFLICT DO NOTHING",
        never,
    )
    found = client.batches.create(write(1_000), key="k")
    assert (found.jobs, found.refused) == (1_000, 0)


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"tenant": "客服"}, "tenant: must have 1 to 64 letters"), ({"key": "k" * 201}, "idempotency_key: must be text")],
)
def test_what_names_a_batch_is_checked_before_anything_is_read(
    client: Client, write: Write, given: dict[str, str], reason: str
) -> None:
    with pytest.raises(InvalidJob, match=reason):
        client.batches.create(write(2), tenant=given.get("tenant", "default"), key=given.get("key"))


def test_other_settings_make_another_batch_of_the_same_file(client: Client, write: Write) -> None:
    file = write(10)
    first = client.batches.create(file)
    assert client.batches.create(file, priority=3).batch_id != first.batch_id
    assert client.batches.create(file, name="renamed").batch_id == first.batch_id


def test_tables_that_readers_left_are_dropped(sandbox: Sandbox, client: Client) -> None:
    for key in ("cancelled", "open"):
        with pytest.raises(_KilledError):
            client.batches.create(half(600), key=key)
    newest, oldest = client.batches.list()
    client.batches.cancel(oldest.batch_id)
    with sandbox.process("pipeline.cli", "recover"):
        wait_for(lambda: tables(sandbox) == 1, "the table of the cancelled batch to be dropped")
    assert newest.input_waits_since is not None


def test_a_batch_that_would_begin_beyond_all_years_is_refused(sandbox: Sandbox, client: Client, write: Write) -> None:
    with pytest.raises(InvalidJob, match="not_before: is too far away"):
        client.batches.create(write(2), not_before="9999-12-31T00:00:00Z", window_seconds=86_400)
    with pytest.raises(InvalidJob, match="not_before"):
        client.batches.create(write(2), not_before="2031-01-01T00:00:00")
    assert sandbox.query("SELECT count(*) FROM batches") == [(0,)]


def test_lines_of_a_steady_trickle_run_meanwhile(sandbox: Sandbox, client: Client) -> None:
    stop = threading.Event()

    def lines() -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            if stop.wait(0.1):
                return
            yield openai_line(number)

    thread = threading.Thread(target=client.batches.create, args=(lines(),))
    thread.start()
    wait_for(lambda: sandbox.query("SELECT count(*) > 5 FROM jobs") == [(True,)], "rows of the trickle")
    assert client.batches.list()[0].status is BatchStatus.IN_PROGRESS
    stop.set()
    thread.join(60)


@pytest.mark.parametrize("source", [b"bytes", {"a": 1}, None, 5])
def test_what_is_no_list_of_lines_is_refused(client: Client, source: Any) -> None:
    with pytest.raises(InvalidJob, match="source: give the path of a file, or a list of lines"):
        client.batches.create(source)
