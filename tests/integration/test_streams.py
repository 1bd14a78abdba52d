"""Streamed answers: frames through a real Redis, and whole streams through real workers."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any, cast

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from pipeline import AsyncClient, Client
from pipeline.jobs.follow import follow
from pipeline.jobs.wait import Waiter
from pipeline.models import DEFAULT_FILE
from pipeline.streams import Frame, StreamReader, StreamWriter
from schemas.errors import ErrorCode, InvalidJob, JobNotFound
from schemas.ids import JobId
from schemas.results import ChatResult, CodeResult, JobState, Outcome
from schemas.streams import EndEvent, RestartEvent, StreamEvent, TextEvent, stream_name
from tests.support.sandbox import Sandbox, wait_for

JOB = JobId(77)


@pytest.fixture
async def writer(sandbox: Sandbox) -> AsyncIterator[StreamWriter]:
    opened = StreamWriter(sandbox.redis_url)
    yield opened
    await opened.close()


@pytest.fixture
async def reader(sandbox: Sandbox) -> AsyncIterator[StreamReader]:
    opened = StreamReader(sandbox.redis_url)
    yield opened
    await opened.close()


async def frames_of(reader: StreamReader, job_id: JobId = JOB) -> list[Frame]:
    """Return all frames up to the end."""
    found: list[Frame] = []
    async with asyncio.timeout(30), reader.follow(job_id) as frames:
        while not found or found[-1].event != "end":
            frame = await frames.get()
            assert frame is not None
            found.append(frame)
    return found


async def entries(sandbox: Sandbox, count: int) -> list[tuple[str, dict[str, str]]]:
    """Wait for this many entries of the job's stream and return them as they are stored."""

    def look() -> list[tuple[str, dict[str, str]]]:
        with redis.Redis.from_url(sandbox.redis_url, decode_responses=True) as client:
            found: Any = client.xrange(stream_name(JOB))
            return list(found) if len(found) >= count else []

    return await asyncio.to_thread(wait_for, look, f"{count} entries")


async def test_frames_come_in_order_also_to_a_late_reader(
    writer: StreamWriter, reader: StreamReader, sandbox: Sandbox
) -> None:
    write = writer.begin(JOB, 100)
    early = asyncio.create_task(frames_of(reader))
    for number in range(50):
        write(f"{number} ")
        if number % 10 == 9:
            await entries(sandbox, number // 10 + 1)
    writer.end([JOB])
    expected = "".join(f"{number} " for number in range(50))
    late = await frames_of(reader)
    for frames in (await early, late):
        assert "".join(frame.text for frame in frames) == expected
        assert all(frame.whole for frame in frames)
        assert {frame.event for frame in frames} == {"text", "end"}
        assert len(frames) < 20, "pieces share frames"
    with redis.Redis.from_url(sandbox.redis_url) as client:
        assert 500 < client.ttl(stream_name(JOB)) <= 600


async def test_a_new_attempt_restarts_and_an_overtaken_one_is_refused(
    writer: StreamWriter, reader: StreamReader, sandbox: Sandbox
) -> None:
    first = writer.begin(JOB, 100)
    first("half an")
    await entries(sandbox, 1)
    other = StreamWriter(sandbox.redis_url)
    other.begin(JOB, 300)("whole")
    await entries(sandbox, 2)
    first(" answer")  # from a worker that counted as lost
    await writer.close()
    other.end([JOB])
    await other.close()
    frames = await frames_of(reader)
    assert [(frame.event, frame.attempt, frame.text) for frame in frames] == [
        ("text", 1, "half an"),
        ("restart", 2, "whole"),
        ("end", 2, ""),
    ]
    assert await entries(sandbox, 3) == [
        ("100-0", {"event": "text", "attempt": "1", "text": "half an"}),
        ("300-0", {"event": "restart", "attempt": "2", "text": "whole"}),
        ("9007199254740991-0", {"event": "end", "attempt": "2", "text": ""}),
    ]


async def test_a_frame_whose_reply_was_lost_is_written_once(
    writer: StreamWriter, reader: StreamReader, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, send, lost = writer.begin(JOB, 100), writer._script, itertools.count()

    async def losing(**given: Any) -> Any:
        reply = await send(**given)
        if next(lost) == 1:
            raise RedisConnectionError("the reply is lost")
        return reply

    monkeypatch.setattr(writer, "_script", losing)
    write("a")
    await entries(sandbox, 1)
    write("b")
    await entries(sandbox, 2)
    write("c")
    await entries(sandbox, 3)
    writer.end([JOB])
    assert "".join(frame.text for frame in await frames_of(reader)) == "abc"


async def test_a_reader_sees_that_a_piece_is_missing(
    writer: StreamWriter, reader: StreamReader, sandbox: Sandbox
) -> None:
    write = writer.begin(JOB, 100)
    write("a")
    await entries(sandbox, 1)
    with redis.Redis.from_url(sandbox.redis_url) as client:
        client.delete(stream_name(JOB))
    write("b")
    await entries(sandbox, 1)
    writer.end([JOB])
    frames = await frames_of(reader)
    assert [(frame.text, frame.whole) for frame in frames if frame.event == "text"] == [("b", False)]


@pytest.fixture
def running(sandbox: Sandbox) -> Iterator[Sandbox]:
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator(speed=20))
        stack.enter_context(sandbox.worker("interactive"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        yield sandbox


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"kind": "chat", "messages": [{"role": "user", "content": text}], **more}


def joined(events: list[StreamEvent]) -> str:
    """Return what is on the screen at the end."""
    shown = ""
    for event in events:
        match event:
            case TextEvent():
                shown += event.text
            case RestartEvent():
                shown = ""
            case EndEvent():
                pass
    return shown


def stored_text(events: list[StreamEvent]) -> str:
    assert isinstance(events[-1], EndEvent)
    assert isinstance(events[-1].outcome.result, ChatResult), events[-1]
    return events[-1].outcome.result.text


def test_a_chat_is_streamed_followed_again_and_stored_whole(running: Sandbox) -> None:
    with Client(database_url=running.database_url, redis_url=running.redis_url) as client:
        events = list(client.stream(chat("我的包裹到哪里了？")))
        assert len(events) > 2
        assert joined(events) == stored_text(events)
        assert not any(isinstance(event, RestartEvent) for event in events)
        end = events[-1]
        assert isinstance(end, EndEvent)
        assert end.outcome.timings.first_token_seconds is not None
        again = list(client.follow(end.job_id))
        assert joined(again) == joined(events)
        with redis.Redis.from_url(running.redis_url) as broker:
            broker.flushdb()
        whole = list(client.follow(end.job_id))
        assert [event.event for event in whole] == ["text", "end"]
        assert joined(whole) == joined(events)


def test_following_a_job_without_a_stream_yields_the_stored_result(running: Sandbox) -> None:
    with Client(database_url=running.database_url, redis_url=running.redis_url) as client:
        job_id = client.submit(chat("你好"))
        events = list(client.follow(job_id))
        assert joined(events) == stored_text(events)
        with pytest.raises(InvalidJob, match="kind: sentiment is answered in one piece"):
            list(client.stream({"kind": "sentiment", "text": "好"}))
        with pytest.raises(JobNotFound):
            list(client.follow(JobId(5)))


def test_an_attempt_that_fails_in_the_middle_shows_no_text_twice(sandbox: Sandbox) -> None:
    answers = sandbox.home / "answers.jsonl"
    answers.write_text(
        '{"when": "包裹", "answer": "您的包裹正在配送途中，请留意电话。", "finish_reason": "abort", "times": 1}\n'
    )
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator("--answers", str(answers), speed=1))
        stack.enter_context(sandbox.worker("interactive"))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        events = list(client.stream(chat("我的包裹到哪里了？")))
        (restart,) = [event for event in events if isinstance(event, RestartEvent)]
        assert restart.attempt == 2
        assert joined(events) == stored_text(events)
        assert isinstance(events[-1], EndEvent)
        assert events[-1].outcome.attempts == 1


def test_code_is_streamed_as_the_model_writes_it(sandbox: Sandbox) -> None:
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator(model="codegeex4-all-9b", speed=20))
        stack.enter_context(sandbox.worker("interactive", "codegeex4-all-9b"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        events = list(client.stream({"kind": "code", "instruction": "add two numbers", "language": "python"}))
        end = events[-1]
        assert isinstance(end, EndEvent)
        assert isinstance(end.outcome.result, CodeResult)
        assert f"```python\n{end.outcome.result.code}" in joined(events)
        assert not any(isinstance(event, RestartEvent) for event in events)


async def test_an_outcome_that_overtakes_the_last_frames_waits_for_them(
    writer: StreamWriter, reader: StreamReader
) -> None:
    answer = "Here it is:\n```python\nprint(1)\n```\nThat is all."
    result = CodeResult(code="print(1)", language="python", explanation="Here it is:\n\nThat is all.")
    outcome = Outcome(job_id=JOB, kind="code", state=JobState.SUCCEEDED, result=result)
    settled = asyncio.Event()

    class StubWaiter:
        async def outcome(self, job_id: JobId) -> Outcome:
            await settled.wait()
            return outcome

    write = writer.begin(JOB, 1)
    write(answer[:20])

    def write_the_rest() -> None:
        write(answer[20:])
        writer.end([JOB])

    events: list[StreamEvent] = []
    async with asyncio.timeout(30):
        async for event in follow(cast(Waiter, StubWaiter()), reader, JOB):
            events.append(event)
            if len(events) == 1:
                settled.set()
                asyncio.get_running_loop().call_later(0.2, write_the_rest)
    assert joined(events) == answer
    assert not any(isinstance(event, RestartEvent) for event in events)


async def test_a_thousand_streams_of_one_worker_lose_no_frame(sandbox: Sandbox) -> None:
    models = sandbox.home / "models.toml"
    models.write_text(DEFAULT_FILE.read_text(encoding="utf-8").replace("max_num_seqs = 256", "max_num_seqs = 1024"))
    sandbox.environment["YYC3_MODELS_FILE"] = str(models)
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator("--max-num-seqs", "1024", speed=2))
        stack.enter_context(sandbox.worker("interactive"))
        async with AsyncClient(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:

            async def read(number: int) -> tuple[JobId, str]:
                events = [event async for event in client.stream(chat(f"第{number}位：我的包裹到哪里了？"))]
                assert joined(events) == stored_text(events)
                assert not any(isinstance(event, RestartEvent) for event in events)
                return events[-1].job_id, stored_text(events)

            stored = await asyncio.gather(*[read(number) for number in range(1_000)])
    with redis.Redis.from_url(sandbox.redis_url, decode_responses=True) as broker:
        for job_id, text in stored:
            found: Any = broker.xrange(stream_name(job_id))
            *texts, (_, end) = found
            assert end["event"] == "end"
            assert "".join(fields["text"] for _, fields in texts) == text
            assert [entry_id for entry_id, _ in texts] == [f"100-{number}" for number in range(len(texts))]


def test_a_cancelled_stream_ends_and_its_request_is_aborted(sandbox: Sandbox) -> None:
    answers = sandbox.home / "answers.jsonl"
    answers.write_text('{"when": "故事", "answer": "' + "从前有一座山。" * 200 + '"}\n')
    with ExitStack() as stack:
        simulator = stack.enter_context(sandbox.simulator("--answers", str(answers), speed=1))
        stack.enter_context(sandbox.worker("interactive"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        events = client.stream(chat("讲个故事", sampling={"max_tokens": 1_000}))
        first = next(events)
        assert client.cancel(first.job_id)
        *_, end = events
        assert isinstance(end, EndEvent)
        assert end.outcome.state is JobState.CANCELLED
        assert end.outcome.error is not None
        assert end.outcome.error.code is ErrorCode.CANCELLED
        wait_for(lambda: simulator.state()["aborted"] > 0, "the engine to stop")
        assert simulator.state()["running"] == 0
        wait_for(lambda: sandbox.query("SELECT state, cancelled FROM chunks") == [("done", 1)], "the chunk to close")
